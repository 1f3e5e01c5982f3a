package protocol

import (
	"slices"
	"testing"
)

func TestIDsOfTheNewestVersion(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]string{NameAdmission: AdmissionProtocol, NamePeer: PeerProtocol, NameMembers: MembersProtocol} {
		if got := ID(name, Version); got != id {
			t.Errorf("%s: %s, want %s", name, got, id)
		}
		if got := VersionOf(name, id); got != Version {
			t.Errorf("%s is of version %d", id, got)
		}
	}
	if !slices.Equal(Spoken, Versions{Version, Version - 1}) {
		t.Errorf("spoken: %v", Spoken)
	}
	for _, id := range []string{"", "/meshnode/tls/", "/meshnode/tls/0", "/meshnode/tls/-1", "/meshnode/tls/02", "/meshnode/tls/1x", "/meshnode/tls/10000", "/meshnode/peer/1", "/tls/1.0.0"} {
		if v := VersionOf(NameAdmission, id); v != 0 {
			t.Errorf("%q is version %d", id, v)
		}
	}
}

func TestIncompatibility(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ids  []string
		want string
	}{
		{nil, ""},
		{[]string{"/tls/1.0.0", "/noise"}, ""},
		{[]string{"/meshnode/tls/3", "/meshnode/tls/2"}, ""},
		{[]string{"/meshnode/tls/1"}, ""},
		{[]string{"/meshnode/tls/3", "/noise", "/meshnode/tls/4", "/meshnode/tls/4"}, "it speaks protocol 4 and 3, this node 2 and 1: update the older one, meshnode on this machine"},
		{[]string{"/meshnode/peer/9"}, ""},
	} {
		got := ""
		if e := Incompatibility(NameAdmission, c.ids, Versions{2, 1}); e != nil {
			got = e.Error()
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.ids, got, c.want)
		}
	}
	e := Incompatibility(NamePeer, []string{"/meshnode/peer/1"}, Versions{3, 2})
	if e == nil || e.Newer() || e.Error() != "it speaks protocol 1, this node 3 and 2: update the older one, meshnode on the other machine" {
		t.Errorf("an older one: %v", e)
	}
}
