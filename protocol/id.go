package protocol

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// NodeID names a node: its libp2p peer ID in text form ("12D3KooW…"), which is a hash of its public
// key. The transport proves it. Empty is no node.
type NodeID string

// Short is the part of the ID that people read: its last eight characters.
func (n NodeID) Short() string {
	if len(n) <= 8 {
		return string(n)
	}
	return string(n[len(n)-8:])
}

// JobID names a job: 128 random bits chosen by the client that submits it.
type JobID [16]byte

// NewJobID returns a fresh random JobID. It may be called concurrently.
func NewJobID() JobID {
	var j JobID
	rand.Read(j[:]) // never fails; see crypto/rand
	return j
}

func (j JobID) String() string { return hex.EncodeToString(j[:]) }

// Short is the part of the ID that people read and may type.
func (j JobID) Short() string { return hex.EncodeToString(j[:4]) }

// IsZero reports whether j is the zero JobID, which names no job.
func (j JobID) IsZero() bool { return j == JobID{} }

// Compare orders JobIDs by their bytes: wherever an order can be seen from outside, it is this one.
func (j JobID) Compare(k JobID) int { return cmp.Compare(string(j[:]), string(k[:])) }

// ParseJobID reads the 32 hexadecimal digits that String writes.
func ParseJobID(s string) (JobID, error) {
	var j JobID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(j) {
		return JobID{}, fmt.Errorf("job id %.40q: want 32 hexadecimal digits", s)
	}
	return JobID(b), nil
}

// JobIDFrom takes the 16 bytes of a message's job field.
func JobIDFrom(b []byte) (JobID, error) {
	if len(b) != 16 {
		return JobID{}, fmt.Errorf("job id of %d bytes: want 16", len(b))
	}
	return JobID(b), nil
}

// TaskID names a task: its job, and its index there from 0.
type TaskID struct {
	Job   JobID
	Index uint32
}

func (t TaskID) String() string { return fmt.Sprintf("%s/%d", t.Job.Short(), t.Index) }

// Attempt names one grant of a task to one worker: the epoch of its origin at the grant, and n, which
// counts the grants of that task in that epoch from 1. No Attempt is ever used twice.
type Attempt struct {
	Job   JobID
	Index uint32
	N     uint32
	Epoch uint64
}

// Task is the task that a is an attempt of.
func (a Attempt) Task() TaskID { return TaskID{a.Job, a.Index} }

func (a Attempt) String() string {
	return fmt.Sprintf("%s/%d#%d.%d", a.Job.Short(), a.Index, a.Epoch, a.N)
}

// Compare orders attempts by job, index, epoch, n.
func (a Attempt) Compare(b Attempt) int {
	return cmp.Or(a.Job.Compare(b.Job), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.N, b.N))
}

// BlobID names bytes by their BLAKE3-256 hash.
type BlobID [32]byte

func (b BlobID) String() string { return hex.EncodeToString(b[:]) }

// IsZero reports whether b is the zero BlobID, which names no blob.
func (b BlobID) IsZero() bool { return b == BlobID{} }

// ParseBlobID reads the 64 hexadecimal digits that String writes.
func ParseBlobID(s string) (BlobID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 {
		return BlobID{}, fmt.Errorf("blob id %.70q: want 64 hexadecimal digits", s)
	}
	return BlobID(b), nil
}

// BlobIDFrom takes the 32 bytes of a message's blob id field.
func BlobIDFrom(b []byte) (BlobID, error) {
	if len(b) != 32 {
		return BlobID{}, fmt.Errorf("blob id of %d bytes: want 32", len(b))
	}
	return BlobID(b), nil
}

// AttemptOf is the attempt that o is the outcome of. Its job is zero if o's job field is malformed;
// an Outcome that ReadMessage returned has been checked.
func (o *Outcome) AttemptOf() Attempt {
	j, _ := JobIDFrom(o.Job)
	return Attempt{Job: j, Index: o.Index, N: o.N, Epoch: o.Epoch}
}

// GroupAttempts packs attempts as messages carry them: one Attempts for each run of the same job and
// epoch, so sort first for the smallest form. It keeps nothing of as.
func GroupAttempts(as []Attempt) []*Attempts {
	var out []*Attempts
	var last *Attempts
	for i, a := range as {
		if i == 0 || a.Job != as[i-1].Job || a.Epoch != as[i-1].Epoch {
			last = &Attempts{Job: append([]byte(nil), a.Job[:]...), Epoch: a.Epoch}
			out = append(out, last)
		}
		last.Index = append(last.Index, a.Index)
		last.N = append(last.N, a.N)
	}
	return out
}

// UngroupAttempts is the inverse of GroupAttempts. A malformed group (which ReadMessage refuses) is left out.
func UngroupAttempts(gs []*Attempts) []Attempt {
	var out []Attempt
	for _, g := range gs {
		j, err := JobIDFrom(g.Job)
		if err != nil || len(g.Index) != len(g.N) {
			continue
		}
		for i := range g.Index {
			out = append(out, Attempt{Job: j, Index: g.Index[i], N: g.N[i], Epoch: g.Epoch})
		}
	}
	return out
}
