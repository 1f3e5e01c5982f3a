package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/process"
)

// ports says whether the node's ports are really served, or, of a node that does not run, are free.
func (m Machine) ports(ctx context.Context) []Finding {
	var out []Finding
	for _, p := range m.Ports {
		f := Finding{Check: CheckPort, Subject: strconv.Itoa(p), State: OK}
		if m.Running {
			f.Text = fmt.Sprintf("the node listens on TCP port %d", p)
			serves := m.Serves
			if serves == nil {
				serves = func(ctx context.Context, addr string) error {
					var d net.Dialer
					c, err := d.DialContext(ctx, "tcp", addr)
					if err == nil {
						c.Close()
					}
					return err
				}
			}
			if err := dial(ctx, p, serves); err != nil {
				f.State = Fail
				f.Text = fmt.Sprintf("the node should listen on TCP port %d, and does not answer even on this machine: %v", p, err)
				f.Fix = "start it again: meshnode down; meshnode up -d; if that does not help, a firewall here stops connections of the machine to itself"
			}
		} else if l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(p))); err != nil {
			f.State = Warn
			f.Text = fmt.Sprintf("TCP port %d, on which this node listened, is taken by another program: it would listen on another one, and the addresses that others remember would be wrong", p)
			f.Fix = "end that program, or choose a port: meshnode up --listen /ip4/0.0.0.0/tcp/PORT"
		} else {
			l.Close()
			f.Text = fmt.Sprintf("TCP port %d, on which this node listens, is free", p)
		}
		out = append(out, f)
	}
	return out
}

// dial connects to a port of this machine at its own addresses, whichever answers first.
func dial(ctx context.Context, port int, serves func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	hosts := []string{"127.0.0.1", "::1"}
	all, _ := links()
	for _, l := range all {
		if l.up() && l.kind != loopback {
			for _, a := range l.addrs {
				if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
					hosts = append(hosts, a.Addr().String()+"%"+l.Name)
				} else {
					hosts = append(hosts, a.Addr().String())
				}
			}
		}
	}
	var last error
	for _, h := range hosts { // one after the other: what is broken off halfway is logged as if somebody had come
		err := serves(ctx, net.JoinHostPort(h, strconv.Itoa(port)))
		if err == nil {
			return nil
		}
		last = cmp.Or(last, err)
	}
	return last
}

// warnFree is below which a disk is nearly full: some large results fill it.
const warnFree = 2 << 30

func (m Machine) disk(context.Context) []Finding {
	if m.DataDir == "" {
		return nil
	}
	dir := m.DataDir
	for { // it may not be made yet
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	u, err := disk.Usage(dir)
	if err != nil {
		return []Finding{{Check: CheckDisk, State: Warn, Text: fmt.Sprintf("the room on the disk of %s is not known: %v", dir, err)}}
	}
	f := Finding{Check: CheckDisk, State: OK, Text: fmt.Sprintf("%s free on the disk of %s", size(u.Free), m.DataDir)}
	switch {
	case u.Free < m.MinFree:
		f.State = Fail
		f.Text = fmt.Sprintf("only %s free on the disk of %s: below %s this node takes no new jobs", size(u.Free), m.DataDir, size(m.MinFree))
		f.Fix = "free some space; meshnode blob gc removes what no job needs"
	case u.Free < warnFree:
		f.State = Warn
		f.Text += ": large results may not fit"
		f.Fix = "free some space; meshnode blob gc removes what no job needs"
	}
	return []Finding{f}
}

func size(n uint64) string {
	if n < 10<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}

// directory says whether the data directory can be written, and only by its user.
func (m Machine) directory(context.Context) []Finding {
	if m.DataDir == "" {
		return nil
	}
	f := Finding{Check: CheckDirectory, State: OK, Text: m.DataDir + " is private and can be written"}
	st, err := os.Stat(m.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		f.Text = m.DataDir + " is not there yet: the first start of the node makes it"
		return []Finding{f}
	}
	if err != nil {
		f.State, f.Text, f.Fix = Fail, "the data directory cannot be read: "+err.Error(), "check the path and its permissions"
		return []Finding{f}
	}
	if runtime.GOOS != "windows" {
		if st.Mode().Perm()&0o077 != 0 {
			f.State, f.Text, f.Fix = Fail, fmt.Sprintf("%s is open to other users (%v): whoever can read it can be this node", m.DataDir, st.Mode().Perm()), "chmod 700 "+m.DataDir
			return []Finding{f}
		}
		key := filepath.Join(m.DataDir, "key")
		if st, err := os.Stat(key); err == nil && st.Mode().Perm()&0o077 != 0 {
			f.State, f.Text, f.Fix = Fail, fmt.Sprintf("the node's key is open to other users (%v)", st.Mode().Perm()), "chmod 600 "+key
			return []Finding{f}
		}
	}
	t, err := os.CreateTemp(m.DataDir, ".doctor-*")
	if err != nil {
		f.State, f.Text, f.Fix = Fail, "the data directory cannot be written: "+err.Error(), "make it this user's, or free some space"
		return []Finding{f}
	}
	t.Close()
	os.Remove(t.Name())
	return []Finding{f}
}

// wantFiles is what a node in a mesh of 300 opens: two connections to each for a moment, its journal and blobs, its worker processes.
const wantFiles = 1024

func (m Machine) limits(context.Context) []Finding {
	limit, used, known := openFiles()
	if !known {
		return nil
	}
	f := Finding{Check: CheckLimits, State: OK, Text: fmt.Sprintf("%d of %d file descriptors are in use", used, limit)}
	if !m.Running {
		f.Text = fmt.Sprintf("a process may have %d open files", limit)
	}
	switch {
	case m.Running && used*10 > limit*8:
		f.State = Fail
		f.Fix = "start the node with a larger limit: ulimit -n 4096"
	case limit < wantFiles:
		f.State = Warn
		f.Text += ": too few for a mesh of hundreds"
		f.Fix = "start the node with a larger limit: ulimit -n 4096"
	}
	return []Finding{f}
}

// maxNodes of the same user that are named.
const maxNodes = 5

// otherNodes lists this user's other nodes on this machine: they are other members, or the one that was meant.
func (m Machine) otherNodes(ctx context.Context) []Finding {
	all, err := process.ProcessesWithContext(ctx)
	if err != nil {
		return nil
	}
	var found []string
	for _, p := range all {
		if ctx.Err() != nil || int(p.Pid) == m.PID || int(p.Pid) == os.Getpid() {
			continue
		}
		args, err := p.CmdlineSliceWithContext(ctx)
		if err != nil || len(args) < 2 || strings.TrimSuffix(filepath.Base(args[0]), ".exe") != "meshnode" || !slices.Contains(args[1:], "up") {
			continue
		}
		if runtime.GOOS != "windows" {
			if uids, err := p.UidsWithContext(ctx); err != nil || len(uids) == 0 || int(uids[0]) != os.Getuid() {
				continue
			}
		}
		name := fmt.Sprintf("process %d", p.Pid)
		if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--data-dir") }); i >= 0 {
			if _, dir, ok := strings.Cut(args[i], "="); ok {
				name += " in " + dir
			} else if i+1 < len(args) {
				name += " in " + args[i+1]
			}
		}
		found = append(found, name)
	}
	if len(found) == 0 {
		return []Finding{{Check: CheckOtherNodes, State: OK, Text: "no other node of this user runs on this machine"}}
	}
	more := ""
	if n := len(found); n > maxNodes {
		found, more = found[:maxNodes], fmt.Sprintf(" and %d more", n-maxNodes)
	}
	return []Finding{{Check: CheckOtherNodes, State: OK, Text: "other nodes of this user run on this machine, each with slots of its own: " + strings.Join(found, ", ") + more}}
}
