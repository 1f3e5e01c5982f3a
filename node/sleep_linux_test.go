package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"meshnode/protocol"
)

// A laptop whose lid is closed while it works for another node: what it has not started goes back before it sleeps, what it runs
// is kept for it, and it goes on when the lid is opened. logind is played by this test, on a bus of its own.
func TestLogind(t *testing.T) {
	t.Parallel()
	logind := playLogind(t)
	a := start(t, "a", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	_, _, s := startChild(t, ctx, a, "worker", "DBUS_SYSTEM_BUS_ADDRESS="+logind.address)
	laptop := s.node
	lock := logind.awaitLock(t, ctx)
	await := func(what string, within time.Duration, ok func() bool) time.Duration {
		t.Helper()
		begun := time.Now()
		for !ok() {
			if ctx.Err() != nil {
				ps, _ := a.Peers(context.Background())
				js, _ := a.Jobs(context.Background())
				t.Fatalf("%s: not after %v: %+v %+v", what, time.Since(begun), ps, js)
			}
			time.Sleep(2 * time.Millisecond)
		}
		took := time.Since(begun)
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
		if took > 3*within+2*time.Second {
			t.Errorf("%s took %v: want %v on a quiet machine", what, took, within)
		}
		return took
	}
	state := func() string {
		ps, err := a.Peers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			if p.ID == string(laptop) {
				return p.State
			}
		}
		return ""
	}

	f, err := os.Open("../examples/wasm/sum_primes.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code, job := put(t, a, f), protocol.NewJobID()
	if err := a.OpenJob(ctx, JobSpec{ID: job, Runtime: "wasm", Code: code, Detached: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.AddTasks(ctx, job, 0, plain([][]byte{[]byte("6000000"), []byte("10"), []byte("11"), []byte("12")})); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseJob(ctx, job, 4); err != nil {
		t.Fatal(err)
	}
	await("the laptop computes", 2*time.Second, func() bool {
		ps, _ := a.Peers(ctx)
		return len(ps) == 2 && ps[1].Running == 1
	})

	closed := time.Now()
	logind.say(t, true)
	lock.awaitRelease(t, ctx)
	released := time.Since(closed)
	t.Logf("the machine may sleep %v after its lid was closed", released.Round(time.Millisecond))
	if released > 4*time.Second {
		t.Errorf("the inhibitor was held for %v: logind waits 5 s", released)
	}
	await("others show it as asleep", time.Second, func() bool { return state() == "asleep" })
	st, err := a.Job(ctx, job)
	if err != nil {
		t.Fatal(err)
	}
	if st.Running != 1 || st.Pending+st.Done != 3 {
		t.Errorf("what runs is to stay with the laptop, and the rest to come back: %+v", st)
	}
	why, err := a.WhyJob(ctx, job)
	if err != nil || !strings.Contains(fmt.Sprint(why), "fell asleep while it ran 1 task") {
		t.Errorf("why does not say that it sleeps: %+v %v", why, err)
	}

	logind.say(t, false)
	await("it is back", 3*time.Second, func() bool { return state() == "connected" })
	logind.awaitLock(t, ctx)
	await("the job ends", 8*time.Second, func() bool { st, err = a.Job(ctx, job); return err == nil && st.State == "done" })
	r, ended, err := a.Result(ctx, job, 0)
	if err != nil || !ended || r.Attempts != 1 || r.Worker != laptop {
		t.Errorf("the task that ran when the lid was closed was not finished there: %+v %v", r, err)
	}
}

// logind is the part of it that nodes use, on a message bus of the test's own.
type logind struct {
	address string
	bus     *dbus.Conn
	locks   chan *lock
}

// lock is an inhibitor: a pipe whose other end its owner holds.
type lock struct{ released chan struct{} }

func playLogind(t *testing.T) *logind {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon here: apt-get install dbus-daemon")
	}
	dir, err := os.MkdirTemp("", "mnbus") // short: there is a socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &logind{address: "unix:path=" + filepath.Join(dir, "bus"), locks: make(chan *lock, 4)}
	conf := filepath.Join(dir, "conf")
	err = os.WriteFile(conf, fmt.Appendf(nil, `<busconfig><type>system</type><listen>%s</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>`, l.address), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+conf, "--nofork", "--nopidfile", "--nosyslog", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = &testLog{t: t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil { // it serves
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	if l.bus, err = dbus.Connect(l.address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.bus.Close() })
	if err := l.bus.Export(l, logindPath, logindInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := l.bus.RequestName(logindName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return l
}

// Inhibit is logind's method.
func (l *logind) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "sleep" || mode != "delay" || who == "" || why == "" {
		return 0, dbus.MakeFailedError(fmt.Errorf("Inhibit(%q, %q, %q, %q)", what, who, why, mode))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	k := &lock{make(chan struct{})}
	go func() {
		defer r.Close()
		r.Read(make([]byte, 1)) // ends when nobody holds the other end
		close(k.released)
	}()
	fd := dbus.UnixFD(w.Fd())
	time.AfterFunc(200*time.Millisecond, func() { w.Close() }) // by then it is on its way, which dup()s it
	l.locks <- k
	return fd, nil
}

func (l *logind) awaitLock(t *testing.T, ctx context.Context) *lock {
	t.Helper()
	select {
	case k := <-l.locks:
		return k
	case <-ctx.Done():
		t.Fatal("the node does not ask logind to wait")
	}
	return nil
}

func (k *lock) awaitRelease(t *testing.T, ctx context.Context) {
	t.Helper()
	select {
	case <-k.released:
	case <-ctx.Done():
		t.Fatal("the node does not let the machine sleep")
	}
}

func (l *logind) say(t *testing.T, sleeps bool) {
	t.Helper()
	if err := l.bus.Emit(logindPath, logindInterface+".PrepareForSleep", sleeps); err != nil {
		t.Fatal(err)
	}
}
