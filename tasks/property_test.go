package tasks

import (
	"flag"
	"fmt"

	"pgregory.net/rapid"

	"meshnode/protocol"
)

// Random events against small, obvious models. A failure prints its seed: -rapid.seed repeats it.
//
// One node is real here, all others are scripted and know no manners: what they list, bring and give back is arbitrary. Whole
// meshes of real nodes are testnet/sim's.

func init() {
	flag.Set("rapid.checks", "500")
	flag.Set("rapid.steps", "70") // on average; a flag on the command line comes later
	flag.Set("rapid.nofailfile", "true")
	flag.Set("rapid.seed", "1") // the same run after run: a change fails by what it changed. 0 draws a new one
}

func drawJob(t *rapid.T) protocol.JobID {
	return protocol.JobID{byte(rapid.IntRange(1, 3).Draw(t, "job"))}
}

// drawOutcome is one of a, ended in some way.
func drawOutcome(t *rapid.T, a protocol.Attempt) *protocol.Outcome {
	o := &protocol.Outcome{Job: a.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N, RunUs: uint64(rapid.IntRange(0, 20000).Draw(t, "run"))}
	switch rapid.IntRange(0, 6).Draw(t, "outcome") {
	case 0, 1, 2:
		o.Status, o.Output = protocol.Status_OK, fmt.Append(nil, a)
	case 3:
		o.Status, o.OutputBlob = protocol.Status_OK, &protocol.Blob{Id: append([]byte{byte(a.Index), byte(a.N), byte(a.Epoch)}, make([]byte, 29)...), Size: 1e5}
	case 4:
		o.Status, o.ExitCode = protocol.Status_FAILED, 3
	default:
		o.Status = protocol.Status_WORKER_LOST
	}
	return o
}

func grantsOf(g *protocol.Grant) []protocol.Attempt {
	var as []protocol.Attempt
	for _, jg := range g.Jobs {
		for _, x := range jg.Tasks {
			as = append(as, protocol.Attempt{Job: protocol.JobID(jg.Job), Index: x.Index, N: x.N, Epoch: g.Epoch})
		}
	}
	return as
}
