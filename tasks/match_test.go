package tasks

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"meshnode/protocol"
)

var kitchen = Facts{
	Name: "Kitchen", OS: "linux", Arch: "amd64", CPUs: 8, Memory: 6 << 30, Labels: []string{"room=4", "gpu", "cuda=12.4", "who=Änne"},
}

const kitchenID = protocol.NodeID("12D3KooWBMQwdcWG1MR2ecm214nZFkqEbJesECtWLdid8aZXRKaB")

func TestOn(t *testing.T) {
	t.Parallel()
	for on, why := range map[string]string{ // "": it holds
		"":                               "",
		"os=linux":                       "",
		"OS = Linux , arch=x86_64":       "",
		"os=windows":                     "has os linux, and the job wants os=windows",
		"os!=windows|macos":              "",
		"os=windows|macos|linux":         "",
		"os!=macos|linux":                "has os linux, and the job wants os!=macos|linux",
		"arch=aarch64":                   "has arch amd64, and the job wants arch=aarch64",
		"cpus>=8,cpus<=8,cpus=8":         "",
		"cpus>8":                         "has cpus 8, and the job wants cpus>8",
		"cpus<8":                         "has cpus 8, and the job wants cpus<8",
		"cpus!=8":                        "has cpus 8, and the job wants cpus!=8",
		"memory>=4G,memory<=6144M":       "",
		"memory>=6.5GiB":                 "has 6 GiB of memory for tasks, and the job wants memory>=6.5GiB",
		"gpu":                            "",
		"!gpu":                           "has what the job does not want: !gpu",
		"tpu":                            "has no label tpu",
		"tpu|gpu":                        "",
		"!tpu":                           "",
		"!tpu|gpu":                       "has what the job does not want: !tpu|gpu",
		"tpu|npu":                        "has no label tpu or npu",
		"room=4":                         "",
		"room=5":                         "has room 4, and the job wants room=5",
		"room>=4,room<5":                 "",
		"room!=4":                        "has room 4, and the job wants room!=4",
		"floor=1":                        "has no label floor, and the job wants floor=1",
		"floor!=1":                       "",
		"floor>1":                        "has no label floor, and the job wants floor>1",
		"who>1":                          "has who Änne, and the job wants who>1",
		"who=änne":                       "",
		"who=ä*e":                        "",
		"cuda>=12.10":                    "has cuda 12.4, and the job wants cuda>=12.10",
		"cuda>=12":                       "",
		"kitchen":                        "",
		"name=KITCHEN":                   "",
		"name=kit*":                      "",
		"name=*t*h*":                     "",
		"name=kit*x*n":                   "is not what the job wants: name=kit*x*n",
		"name!=kitchen":                  "is not what the job wants: name!=kitchen",
		"python":                         "",
		"python>=3.9":                    "",
		"python>=3.12":                   "has python 3.11.4, and the job wants python>=3.12",
		"python=3.11":                    "",
		"python=3.1":                     "has python 3.11.4, and the job wants python=3.1",
		"python!=3.11":                   "has python 3.11.4, and the job wants python!=3.11",
		"runtime=wasm":                   "",
		"runtime=command":                "runs wasm, python3.11.4, and the job wants runtime=command",
		string(kitchenID):                "",
		string(kitchenID[:12]):           "",
		kitchenID.Short():                "",
		string(kitchenID[:8]):            "has no label 12d3koow",
		"id=" + kitchenID.Short():        "",
		"id=12D3KooWother":               "is not what the job wants: id=12D3KooWother",
		"os=linux,gpu,cpus>=4,room=4|5":  "",
		"os=linux,gpu,cpus>=64,room=4|5": "has cpus 8, and the job wants cpus>=64",
	} {
		o, err := ParseOn(on)
		if err != nil {
			t.Errorf("%s: %v", on, err)
			continue
		}
		if ok, got := o.Match(kitchenID, &kitchen, []string{"wasm", "python3.11.4"}); ok != (why == "") || !ok && got != why {
			t.Errorf("%s: %v, %q; want %q", on, ok, got, why)
		}
		if ok, _ := o.Match("", &Facts{}, nil); ok && why == "" && !strings.Contains("floor!=1 !tpu os!=windows|macos", on) {
			t.Errorf("%s holds for a node that says nothing of itself", on)
		}
	}
}

func TestOnRefusesWhatNobodyMeans(t *testing.T) {
	t.Parallel()
	for on, why := range map[string]string{
		"os=linux,":              "a condition is empty",
		",":                      "a condition is empty",
		"linux":                  `"linux": write os=linux`,
		"!macos":                 `"!macos": write os!=macos`,
		"arm64|gpu":              `write arch=arm64`,
		"cpus":                   "compare it with something",
		"os=linus":               `no os "linus" is known; known are android, darwin`,
		"arch=mips":              "no arch",
		"os>=linux":              "os is compared by = and !=",
		"name>a":                 "name is compared by = and !=",
		"cpus>=many":             "want a whole number of processors after cpus>=",
		"cpus>=1.5":              "want a whole number",
		"cpus=1|2":               "want a whole number",
		"memory>=lots":           "want a size after memory>=, like 512M or 4G",
		"memory>=99999999999G":   "want a size",
		"memory>=1.G":            "want a size",
		"cpus=>8":                `write >= rather than =>`,
		"cpus>=":                 "a value is missing after >=",
		"os=linux|":              "a value is missing after =",
		"os=linux|arch=arm64":    `write "arch=arm64" as a condition of its own, after a comma`,
		">=3":                    "write what is compared before the >",
		"!=3":                    "write what is compared before the !",
		"cpus>=8 && gpu":         "conditions have no blanks",
		"room='4'":               "quotes",
		"room>=big":              "want a number or a version after >=, like 4 or 3.11",
		"room>=1|2":              ">= compares with one value",
		"4th=x":                  "cannot be the name of a label",
		"a b=x":                  "cannot be the name of a label",
		"room!4":                 "want one of = != > >= < <= after room",
		strings.Repeat("a,", 40): "more than 32 conditions",
		strings.Repeat("a|", 40): "more than 32 values",
		strings.Repeat("a", 300): "at most 256 bytes",
		"\xff":                   "UTF-8",
		"a\x1b[1m":               "cannot be a value",
	} {
		o, err := ParseOn(on)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, %v; want %s", on, o, err, why)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	for label, why := range map[string]string{
		"gpu": "", "room=4": "", "Room=Küche": "", "a.b-c_d=1": "", "gpu=RTX-4090": "",
		"": "want key=value", "=x": "want key=value", "4th=x": "want key=value", "room=": "its value is empty",
		"room=a b": "without blanks", "room=a,b": "want a value", "room=a|b": "want a value", "room=a*": "want a value",
		"os=linux": "the node itself says", "NAME=x": "the node itself says", "room=" + strings.Repeat("x", 65): "up to 64",
	} {
		if err := CheckLabels([]string{label}); (err == nil) != (why == "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("label %q: %v, want %s", label, err, why)
		}
	}
	if err := CheckLabels([]string{"a=1", "A=2"}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a label twice: %v", err)
	}
	if err := CheckLabels(make([]string, protocol.MaxLabels+1)); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("too many labels: %v", err)
	}
}

// FuzzOn: no expression and no node's words make Match panic; what is refused has a reason; what is accepted is the same
// when it is read again.
func FuzzOn(f *testing.F) {
	for _, on := range []string{"os=linux,cpus>=8", "!gpu|tpu", "name=*a*b*", "python>=3.11", "memory<1.25G", "room!=4|5", "=", "!", "a=*", "id=x"} {
		f.Add(on, "kitchen", "room=4", "python3.11")
	}
	f.Fuzz(func(t *testing.T, on, name, label, runtime string) {
		o, err := ParseOn(on)
		if err != nil {
			if err.Error() == "" || strings.Contains(err.Error(), "%!") {
				t.Fatalf("%q is refused with %q", on, err)
			}
			return
		}
		facts := Facts{Name: name, OS: name, Arch: label, Labels: []string{label, name}, CPUs: uint32(len(on)), Memory: uint64(len(name))}
		ok, why := o.Match(protocol.NodeID(label), &facts, []string{runtime, name})
		if ok != (why == "") && !ok {
			t.Fatalf("%q does not hold, without a reason", on)
		}
		again, err := ParseOn(o.String())
		if err != nil {
			t.Fatalf("%q is refused when it is read again: %v", on, err)
		}
		if ok2, _ := again.Match(protocol.NodeID(label), &facts, []string{runtime, name}); ok2 != ok {
			t.Fatalf("%q holds: %v, and when read again %v", on, ok, ok2)
		}
		// A label that CheckLabels takes can be asked for.
		if k, v, has := strings.Cut(label, "="); CheckLabels([]string{label}) == nil {
			for _, ask := range []string{k, k + "=" + v} {
				if !has && ask != k || aliases["os"][strings.ToLower(k)] != "" || aliases["arch"][strings.ToLower(k)] != "" {
					continue
				}
				o, err := ParseOn(ask)
				if err != nil {
					if _, known := aliases["os"][strings.ToLower(k)]; known {
						continue
					}
					if _, known := aliases["arch"][strings.ToLower(k)]; known {
						continue
					}
					t.Fatalf("label %q cannot be asked for with %q: %v", label, ask, err)
				}
				if ok, why := o.Match("", &Facts{Labels: []string{label}}, nil); !ok {
					t.Fatalf("label %q is not found with %q: %s", label, ask, why)
				}
			}
		}
	})
}

// newOrigin is a scheduler "a" that runs wasm in two slots and is in room 1.
func newOrigin(t interface{ Fatal(...any) }) *Scheduler {
	s, err := New(Config{
		Self: "a", Epoch: 1, Incarnation: 1, Key: [32]byte{1}, Rand: rand.New(rand.NewPCG(1, 2)), Slots: 2, Runtimes: []string{"wasm"},
		Facts: Facts{Name: "attic", OS: "linux", Arch: "amd64", Labels: []string{"room=1"}, CPUs: 2, Memory: 2 << 30},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wasmJob(id protocol.JobID, at *protocol.Placement, memory uint64) *protocol.Job {
	return &protocol.Job{
		Job: id[:], Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: make([]byte, 32)}},
		Limits: &protocol.Limits{MemoryBytes: memory}, Placement: at,
	}
}

func (s *Scheduler) connectTest(now int64, id protocol.NodeID, session uint64, slots uint32, f Facts) {
	s.Step(now, PeerUp{Peer: id, Session: session, MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"}, Hello: &protocol.Hello{
		Epoch: 1, Incarnation: uint64(len(id)) + session<<8, Slots: slots, Runtimes: []string{"wasm"},
		Name: f.Name, Os: f.OS, Arch: f.Arch, Labels: f.Labels, Cpus: f.CPUs, MemoryBytes: f.Memory,
	}})
}

// TestPlacement: who of three nodes is granted tasks, and what the job says while none is.
func TestPlacement(t *testing.T) {
	t.Parallel()
	job := protocol.JobID{1}
	for name, c := range map[string]struct {
		at     *protocol.Placement
		memory uint64
		to     string // who got tasks
		why    string
	}{
		"anywhere":    {&protocol.Placement{}, 0, "a b c", ""},
		"on a label":  {&protocol.Placement{On: "gpu"}, 0, "b", ""},
		"not b":       {&protocol.Placement{Not: []string{"b"}}, 0, "a c", ""},
		"local only":  {&protocol.Placement{LocalOnly: true}, 0, "a", ""},
		"remote only": {&protocol.Placement{RemoteOnly: true}, 0, "b c", ""},
		"all of it":   {&protocol.Placement{RemoteOnly: true, On: "room=2", Not: []string{"b"}}, 0, "c", ""},
		"memory":      {&protocol.Placement{}, 3 << 30, "b", ""},
		"nowhere": {&protocol.Placement{On: "tpu"}, 0, "",
			"no node can run it now: this node has no label tpu (kitchen, cellar too)"},
		"nowhere, for different reasons": {&protocol.Placement{On: "room=2", Not: []string{"b"}}, 2 << 30, "",
			"no node can run it now: this node has 1 GiB of memory for a task, and the job wants 2 GiB (cellar too); kitchen is excluded by --not"},
		"remote only and not there": {&protocol.Placement{RemoteOnly: true, On: "os=windows"}, 0, "",
			"no node can run it now: this node gets none of it: the job runs only on other nodes; kitchen has os linux, and the job wants os=windows; cellar has os darwin, and the job wants os=windows"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newOrigin(t)
			s.connectTest(1, "b", 1, 1, Facts{Name: "kitchen", OS: "linux", Arch: "amd64", Labels: []string{"gpu", "room=2"}, CPUs: 8, Memory: 4 << 30})
			s.connectTest(1, "c", 2, 1, Facts{Name: "cellar", OS: "darwin", Arch: "arm64", Labels: []string{"room=2"}, CPUs: 4, Memory: 1 << 30})
			if err := s.Step(2, Submit{Job: job, Spec: wasmJob(job, c.at, c.memory), Inputs: make([]Input, 20), Close: true, Count: 20}); err != nil {
				t.Fatal(err)
			}
			s.Ready()
			if err := s.Check(); err != nil {
				t.Error(err)
			}
			var to []string
			for _, id := range s.order {
				if len(s.peers[id].leases) > 0 {
					to = append(to, string(id))
				}
			}
			if got := strings.Join(to, " "); got != c.to {
				t.Errorf("granted to %q, want %q", got, c.to)
			}
			st, _ := s.Job(job)
			if st.Reason != c.why {
				t.Errorf("reason %q, want %q", st.Reason, c.why)
			}
		})
	}
	s := newOrigin(t)
	if err := s.Step(1, Submit{Job: job, Spec: wasmJob(job, &protocol.Placement{On: "cpus>=many"}, 0)}); !errors.Is(err, ErrPlacement) {
		t.Errorf("an expression that cannot be read: %v", err)
	}
	if _, ok := s.Job(job); ok {
		t.Error("it opened a job")
	}
}

// TestPlacementAlways: whatever joins, leaves, asks, changes its slots and comes back, no task is granted where its job does
// not want to run (Check), and a job that waits says why.
func TestPlacementAlways(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		s := newOrigin(r)
		now, session := second, uint64(0)
		ids := []protocol.NodeID{"b", "c", "d"}
		for step := range rapid.IntRange(1, 40).Draw(r, "steps") {
			now += rapid.Int64Range(0, 400*millisecond).Draw(r, "later")
			p := rapid.SampledFrom(ids).Draw(r, "peer")
			switch rapid.IntRange(0, 6).Draw(r, "what") {
			case 0, 1:
				session++
				s.connectTest(now, p, session, rapid.Uint32Range(0, 3).Draw(r, "slots"), Facts{
					Name: string(p), OS: rapid.SampledFrom([]string{"linux", "windows"}).Draw(r, "os"),
					Labels: rapid.SampledFrom([][]string{nil, {"gpu"}, {"room=1"}, {"gpu", "room=2"}}).Draw(r, "labels"), Memory: 4 << 30,
				})
			case 2:
				if q := s.peers[p]; q != nil {
					s.Step(now, PeerDown{Peer: p, Session: q.session, Clean: rapid.Bool().Draw(r, "clean")})
				}
			case 3, 4:
				id := protocol.JobID{byte(step + 1)}
				at := &protocol.Placement{
					On:        rapid.SampledFrom([]string{"", "gpu", "room=2", "os=windows", "!gpu", "room>=1,os=linux", "tpu"}).Draw(r, "on"),
					LocalOnly: rapid.IntRange(0, 5).Draw(r, "local") == 0, RemoteOnly: rapid.IntRange(0, 3).Draw(r, "remote") == 0,
				}
				if rapid.Bool().Draw(r, "not") {
					at.Not = []string{string(p)}
				}
				n := rapid.Uint32Range(1, 9).Draw(r, "tasks")
				if err := s.Step(now, Submit{Job: id, Spec: wasmJob(id, at, rapid.SampledFrom([]uint64{0, 1 << 30, 3 << 30}).Draw(r, "memory")), Inputs: make([]Input, n), Close: true, Count: n}); err != nil {
					r.Fatal(err)
				}
			case 5:
				if q := s.peers[p]; q != nil && q.up {
					s.Step(now, Receive{Peer: p, Session: q.session, Message: &protocol.StealRequest{Epoch: s.epoch, Id: uint64(step), Want: 4, Free: 1}})
				}
			case 6:
				s.Step(now, SetSlots{rapid.IntRange(0, 3).Draw(r, "own slots")})
			}
			ready := s.Ready()
			for _, st := range ready.Start { // its tasks end at once
				f := Finished{Slot: st.Slot, Idle: true}
				for _, it := range st.Items {
					a := it.Attempt
					f.Outcomes = append(f.Outcomes, &protocol.Outcome{Job: a.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK, RunUs: 1000})
				}
				s.Step(now, f)
			}
			for _, p := range ready.Prepare {
				if !p.Drop {
					s.Step(now, Prepared{Origin: p.Origin, Job: protocol.JobID(p.Info.Job)})
				}
			}
			s.Ready()
			if err := s.Check(); err != nil {
				r.Fatal(err)
			}
			for _, id := range s.order {
				w, _ := s.WhyPeer(now, id)
				checkWhy(r, w, true)
			}
			for _, st := range s.Jobs() {
				w, _ := s.WhyJob(now, st.ID)
				checkWhy(r, w, st.Pending > 0)
				for i := range st.Tasks {
					w, _ := s.WhyTask(now, st.ID, i)
					checkWhy(r, w, true)
				}
				if st.State == JobWaiting && st.Pending > 0 && st.Wait.Code == "" && !somebodyFree(s, st.ID) {
					r.Fatal(fmt.Sprintf("job %s waits, nobody can take it, and it does not say why: %+v", st.ID.Short(), st))
				}
				if st.State == JobWaiting && st.Reason != "" && (st.Wait.Code == "" || st.Wait.Fix == "") {
					r.Fatal(fmt.Sprintf("reason %q without a code or a fix", st.Reason))
				}
			}
		}
	})
}

// checkWhy: each line has its words, nothing is left of the places for others, and what waits has a reason that is no story.
func checkWhy(r *rapid.T, w Why, some bool) {
	for _, x := range w.Reasons {
		if x.Code == "" || x.Text == "" || x.Fix == "" || strings.ContainsAny(x.Text+x.Fix, "{}") || strings.Contains(x.Text+x.Fix, "  ") {
			r.Fatal(fmt.Sprintf("%q: %+v", w.Summary, x))
		}
	}
	if w.Summary == "" || some && len(w.Reasons) == 0 {
		r.Fatal(fmt.Sprintf("%q: %+v", w.Summary, w.Reasons))
	}
}

func somebodyFree(s *Scheduler, id protocol.JobID) bool {
	for _, p := range s.peers {
		if s.available(p) && s.canRun(p, s.jobs[id]) && s.free(p) > 0 {
			return true
		}
	}
	return false
}
