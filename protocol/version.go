package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Version is the one number that says what nodes say to each other: admission, the scheduler's messages, news of members and
// blobs together. docs/protocol.md, Versions, says what may change within one and what needs a new one. Each protocol's ID ends
// with it.
const Version = 2

// Names of the protocols between nodes, for ID.
const (
	NameAdmission = "tls"
	NamePeer      = "peer"
	NameMembers   = "members"
	NameBlob      = "blob"
	// NameCheck and NameMove are there from version 2 on.
	NameCheck = "check"
	NameMove  = "move"
)

// Limits of CheckRequest and CheckAnswer.
const (
	MaxCheck      = 1 << 10 // bytes of either
	MaxCheckEcho  = 64
	MaxCheckPorts = 4
)

// Versions are versions that a node speaks, the one it prefers first.
type Versions []int

// Spoken is what this program speaks: its version and the one before, so that the nodes of a mesh can be updated one after
// another. Not to be changed.
var Spoken = Versions{Version, Version - 1}

// ID is the ID of a protocol in one version.
func ID(name string, version int) string { return "/meshnode/" + name + "/" + strconv.Itoa(version) }

// IDs are those of a protocol in all versions of vs, in that order.
func (vs Versions) IDs(name string) []string {
	ids := make([]string, len(vs))
	for i, v := range vs {
		ids[i] = ID(name, v)
	}
	return ids
}

// String is for people: "2 and 1".
func (vs Versions) String() string {
	words := make([]string, len(vs))
	for i, v := range vs {
		words[i] = strconv.Itoa(v)
	}
	return strings.Join(words, " and ")
}

// maxVersion bounds what is taken for a version: there will be no such number, and it fits anywhere.
const maxVersion = 9999

// VersionOf is the version that an ID of the named protocol ends with; 0 if it is no such ID.
func VersionOf(name, id string) int {
	s, ok := strings.CutPrefix(id, "/meshnode/"+name+"/")
	v, err := strconv.Atoi(s)
	if !ok || err != nil || v < 1 || v > maxVersion || ID(name, v) != id {
		return 0
	}
	return v
}

// Incompatible says that two nodes have no version in common.
type Incompatible struct {
	Theirs Versions // at least one
	Ours   Versions
}

// Incompatibility compares the IDs of the named protocol that the other side has with what this one speaks: nil if there is
// a version in common, or if the other side has no such protocol at all.
func Incompatibility(name string, ids []string, ours Versions) *Incompatible {
	e := &Incompatible{Ours: ours}
	for _, id := range ids {
		v := VersionOf(name, id)
		if v == 0 || slices.Contains(e.Theirs, v) {
			continue
		}
		if slices.Contains(ours, v) {
			return nil
		}
		e.Theirs = append(e.Theirs, v)
	}
	if len(e.Theirs) == 0 {
		return nil
	}
	slices.Sort(e.Theirs)
	slices.Reverse(e.Theirs)
	e.Theirs = e.Theirs[:min(len(e.Theirs), 4)] // its own, and for people
	return e
}

// Newer says that the other side is the newer one, so that this one is to be updated.
func (e *Incompatible) Newer() bool { return slices.Max(e.Theirs) > slices.Max(e.Ours) }

func (e *Incompatible) Error() string {
	return fmt.Sprintf("it speaks protocol %s, this node %s: %s", e.Theirs, e.Ours, e.Fix())
}

// Fix is what is to be done about it.
func (e *Incompatible) Fix() string {
	if e.Newer() {
		return "update the older one, meshnode on this machine"
	}
	return "update the older one, meshnode on the other machine"
}
