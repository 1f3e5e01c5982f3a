package sim

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"

	"meshnode/protocol"
	"meshnode/tasks"
)

// The words of a trace: short, the same in every run.

func attempts(gs []*protocol.Attempts) string {
	as := protocol.UngroupAttempts(gs)
	s := make([]string, 0, 12)
	for i, a := range as {
		if i == 10 {
			s = append(s, fmt.Sprintf("… %d", len(as)))
			break
		}
		s = append(s, a.String())
	}
	return "[" + strings.Join(s, " ") + "]"
}

func describeMessage(m protocol.Message) string {
	switch m := m.(type) {
	case *protocol.Hello:
		return fmt.Sprintf("Hello epoch %d inc %x seen %d held %s unanswered %s", m.Epoch, m.Incarnation>>48, m.SeenEpoch, attempts(m.Held), attempts(m.Unanswered))
	case *protocol.Beat:
		held := "same"
		if !m.SameHeld {
			held = attempts(m.Held) + " unanswered " + attempts(m.Unanswered)
		}
		return fmt.Sprintf("Beat epoch %d grants %d held %s heard %d ms step %d ms ping %d/%d", m.Epoch, m.GrantsRead, held, m.HeardAgeMs, m.StepAgeMs, m.Ping, m.Pong)
	case *protocol.Grant:
		var s []string
		for _, g := range m.Jobs {
			id, _ := protocol.JobIDFrom(g.Job)
			for i, t := range g.Tasks {
				if i == 10 {
					s = append(s, fmt.Sprintf("… %d", len(g.Tasks)))
					break
				}
				s = append(s, protocol.Attempt{Job: id, Index: t.Index, N: t.N, Epoch: m.Epoch}.String())
			}
		}
		return fmt.Sprintf("Grant epoch %d number %d request %d left %d %v", m.Epoch, m.Number, m.Request, m.Left, s)
	case *protocol.GiveBack:
		return fmt.Sprintf("GiveBack epoch %d recall %d %s %s", m.Epoch, m.Recall, attempts(m.Attempts), m.Reason)
	case *protocol.Result:
		var s []string
		for _, o := range m.Outcomes {
			s = append(s, fmt.Sprint(o.AttemptOf(), " ", o.Status))
		}
		return fmt.Sprintf("Result %v", s)
	case *protocol.ResultAnswer:
		return fmt.Sprintf("ResultAnswer accepted %s superseded %s unknown %s", attempts(m.Accepted), attempts(m.Superseded), attempts(m.Unknown))
	case *protocol.Revoke:
		return fmt.Sprintf("Revoke epoch %d %s", m.Epoch, attempts(m.Attempts))
	case *protocol.Cancel:
		return fmt.Sprintf("Cancel epoch %d %x", m.Epoch, m.Job[:4])
	case *protocol.JobInfo:
		return fmt.Sprintf("JobInfo epoch %d %x", m.Epoch, m.Job[:4])
	}
	// prototext puts random spaces into its output; a trace has to be equal in equal runs.
	s, _ := prototext.MarshalOptions{}.Marshal(m)
	return fmt.Sprintf("%T{%s}", m, strings.Join(strings.Fields(string(s)), " "))
}

func describeEvent(ev tasks.Event) string {
	switch ev := ev.(type) {
	case tasks.Submit:
		return fmt.Sprintf("Submit %s from %d: %d tasks, close %v", ev.Job.Short(), ev.First, len(ev.Inputs), ev.Close)
	case tasks.Cancel:
		if ev.Task != nil {
			return fmt.Sprintf("Cancel %s/%d", ev.Job.Short(), *ev.Task)
		}
		return fmt.Sprintf("Cancel %s", ev.Job.Short())
	case tasks.PeerUp:
		return fmt.Sprintf("PeerUp %s#%d %s", ev.Peer.Short(), ev.Session, describeMessage(ev.Hello))
	case tasks.Receive:
		return fmt.Sprintf("%s#%d: %s", ev.Peer.Short(), ev.Session, describeMessage(ev.Message))
	case tasks.Finished:
		var s []string
		for _, o := range ev.Outcomes {
			s = append(s, fmt.Sprint(o.AttemptOf(), " ", o.Status))
		}
		return fmt.Sprintf("Finished slot %d %v returned %v idle %v", ev.Slot, s, ev.Returned, ev.Idle)
	}
	return fmt.Sprintf("%T%+v", ev, ev)
}

func describeRecord(r tasks.Record) string {
	switch r := r.(type) {
	case tasks.JobRecord:
		return fmt.Sprintf("Job %x", r.Spec.Job[:4])
	case tasks.TasksRecord:
		return fmt.Sprintf("Tasks %s from %d: %d", r.Job.Short(), r.First, len(r.Inputs))
	case tasks.DoneRecord:
		return fmt.Sprintf("Done %v %v by %s", r.Done.Outcome.AttemptOf(), r.Done.Outcome.Status, r.Done.Worker.Short())
	case tasks.HeldRecord:
		return fmt.Sprintf("Held %v for %s", r.Outcome.AttemptOf(), r.Origin.Short())
	}
	return fmt.Sprintf("%T%+v", r, r)
}

func describeNotice(x tasks.Notice) string {
	switch x.Kind {
	case tasks.Accepted:
		return fmt.Sprintf("Accepted %s: %d tasks, durable %v", x.Job.Short(), x.Count, x.Durable)
	case tasks.TaskDone:
		return fmt.Sprintf("TaskDone %s/%d %v", x.Job.Short(), x.Done.Outcome.Index, x.Done.Outcome.Status)
	case tasks.JobEnded:
		return fmt.Sprintf("JobEnded %s %v", x.Job.Short(), x.State)
	}
	return fmt.Sprintf("%+v", x)
}
