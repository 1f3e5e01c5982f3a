package protocol

import (
	"fmt"
	"sort"
)

// Numbers maps the tasks of a job to their places in a longer list, of which they are a part (Job.runs). The zero
// value is the list itself. It is not changed after NewNumbers, and may be used concurrently.
type Numbers struct {
	first []uint32 // index of the first task of each run of tasks, rising
	shift []uint32 // what is left out before that run
}

// NewNumbers reads the runs of a Job. An error says that no list within MaxTasks has them.
func NewNumbers(runs []uint32) (Numbers, error) {
	var n Numbers
	var index, shift uint64
	for i, r := range runs {
		if i%2 == 1 {
			index += uint64(r)
		} else if shift += uint64(r); r > 0 {
			n.first, n.shift = append(n.first, uint32(index)), append(n.shift, uint32(shift))
		}
		if index+shift > MaxTasks {
			return Numbers{}, fmt.Errorf("a list of more than %d tasks", MaxTasks)
		}
	}
	return n, nil
}

// Of is the place in the list, from 0, of the task with that index.
func (n Numbers) Of(index uint32) uint32 {
	i := sort.Search(len(n.first), func(i int) bool { return n.first[i] > index })
	if i == 0 {
		return index
	}
	return index + n.shift[i-1]
}

// Runs are those of a Job whose tasks are the places of a list that kept says, of the first of them; what follows is
// kept.
func Runs(places uint32, kept func(uint32) bool) []uint32 {
	var runs []uint32
	length, keep := uint32(0), false
	for i := range places {
		if k := kept(i); k != keep {
			runs, length, keep = append(runs, length), 0, k
		}
		length++
	}
	if !keep && length > 0 {
		return append(runs, length)
	}
	if keep && len(runs) == 1 && runs[0] == 0 { // all of it
		return nil
	}
	return runs
}
