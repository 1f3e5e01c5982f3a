package node

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

// WhyJob implements clientAPI.
func (n *Node) WhyJob(ctx context.Context, job protocol.JobID) (Why, error) {
	var w tasks.Why
	var ok bool
	if err := n.ask(func(s *tasks.Scheduler) { w, ok = s.WhyJob(n.loop.now(), job) }); err != nil {
		return Why{}, err
	}
	if !ok {
		return Why{}, jobError(fmt.Errorf("job %s: %w", job.Short(), tasks.ErrNoJob))
	}
	if n.goesOn(job) {
		n.addOwn(&w)
	}
	return whyOf("job "+job.Short(), job.Short(), w), nil
}

// WhyTask implements clientAPI.
func (n *Node) WhyTask(ctx context.Context, job protocol.JobID, index uint32) (Why, error) {
	var w tasks.Why
	var ok bool
	if err := n.ask(func(s *tasks.Scheduler) { w, ok = s.WhyTask(n.loop.now(), job, index) }); err != nil {
		return Why{}, err
	}
	if !ok {
		return Why{}, jobError(fmt.Errorf("task %d of job %s: %w", index, job.Short(), tasks.ErrNoJob))
	}
	name := fmt.Sprintf("%s/%d", job.Short(), index)
	if n.goesOn(job) {
		n.addOwn(&w)
	}
	out := whyOf("task "+name, name, w)
	if r, ended, err := n.Result(ctx, job, index); err == nil && ended { // what the scheduler does not keep is in the journal
		how := "ended well"
		switch {
		case r.Status == protocol.Status_CANCELLED:
			how = "cancelled"
		case r.Status != protocol.Status_OK:
			how = fmt.Sprintf("failed, exit code %d", r.ExitCode)
		}
		if r.Worker != "" {
			how += fmt.Sprintf(" on %s, after %v; attempts: %d", r.Name, r.Run.Round(10*time.Microsecond), r.Attempts)
		}
		if r.Error != "" {
			how += ": " + r.Error
		}
		out.Summary = how
	}
	return out, nil
}

// WhyPeer implements clientAPI.
func (n *Node) WhyPeer(ctx context.Context, id string) (Why, error) {
	var w tasks.Why
	met := false
	if err := n.ask(func(s *tasks.Scheduler) { w, met = s.WhyPeer(n.loop.now(), protocol.NodeID(id)) }); err != nil {
		return Why{}, err
	}
	ps, err := n.Peers(ctx)
	if err != nil {
		return Why{}, err
	}
	for _, p := range ps {
		if p.ID != id {
			continue
		}
		name := "node " + p.Name
		if p.State == "self" {
			name += " (this one)"
		}
		if p.State == "self" {
			n.addOwn(&w)
			for _, trouble := range n.members.Trouble() {
				w.Reasons = append([]tasks.Reason{{Code: "membership", Text: trouble, Fix: "see meshnode status"}}, w.Reasons...)
			}
		}
		if p.Path == "relay" {
			w.Reasons = append(w.Reasons, tasks.ThroughRelay(p.Name, cmp.Or(n.nameOf(protocol.NodeID(p.Relay)), p.Relay)))
		}
		if p.State == "gone" { // discovery knows more than the scheduler
			gone := tasks.NotConnected.Reason(p.Name, "")
			if p.Reason != "" {
				gone.Text += ": " + p.Reason
			}
			if p.fix != "" {
				gone.Fix = p.fix
			}
			w.Summary = gone.Text
			if len(w.Reasons) > 0 && w.Reasons[0].Code == gone.Code {
				w.Reasons = w.Reasons[1:]
			}
			w.Reasons = append([]tasks.Reason{gone}, w.Reasons...)
			if what := n.networkTrouble(); what != "" {
				w.Reasons = append([]tasks.Reason{tasks.NoNetwork(what)}, w.Reasons...)
			}
		}
		return whyOf(name, "", w), nil
	}
	for _, d := range n.members.AllDeparted() {
		if id != d.Peer.String() && (id != d.Name || id == "") {
			continue
		}
		fix := "nothing, if that was meant; it can come back with a new identity: meshnode leave there, then a new ticket"
		if d.Left {
			fix = "to have it back: meshnode invite here, meshnode join there"
		}
		reason := tasks.Reason{Code: "departed", Text: cmp.Or(d.Name, d.Peer.String()) + " " + d.String(), Fix: fix}
		return whyOf("node "+cmp.Or(d.Name, d.Peer.String()), "", tasks.Why{Summary: "no member of the mesh any more", Reasons: []tasks.Reason{reason}}), nil
	}
	if !met {
		return Why{}, &Error{Code: CodeNoPeer, Message: fmt.Sprintf("no member %s", id), Fix: "meshnode peers lists them"}
	}
	return whyOf("node "+cmp.Or(n.nameOf(protocol.NodeID(id)), id), "", w), nil
}

// goesOn says whether a job of this node has not ended.
func (n *Node) goesOn(job protocol.JobID) (is bool) {
	n.ask(func(s *tasks.Scheduler) {
		st, ok := s.Job(job)
		is = ok && st.State < tasks.JobDone
	})
	return is
}

// addOwn puts first what is wrong with this machine, if something is: with the room on its disk, for which results of this node's jobs
// wait, and with its network.
func (n *Node) addOwn(w *tasks.Why) {
	if what := n.networkTrouble(); what != "" {
		w.Reasons = append([]tasks.Reason{tasks.NoNetwork(what)}, w.Reasons...)
	}
	if what := n.diskState(); what != "" {
		w.Reasons = append([]tasks.Reason{tasks.FullDisk(what)}, w.Reasons...)
	}
}

// whyOf makes a client's Why. A job or task by its name stands in what is to be typed.
func whyOf(subject, name string, w tasks.Why) Why {
	out := Why{Subject: subject, Summary: w.Summary, Reasons: make([]tasks.Reason, 0, len(w.Reasons))}
	job, _, isTask := strings.Cut(name, "/")
	for _, r := range w.Reasons {
		if isTask {
			r.Fix = strings.ReplaceAll(r.Fix, "JOB/TASK", name)
		}
		if job != "" {
			r.Fix = strings.ReplaceAll(r.Fix, "JOB", job)
		}
		out.Reasons = append(out.Reasons, r)
	}
	return out
}
