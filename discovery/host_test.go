package discovery

import (
	"path/filepath"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	ma "github.com/multiformats/go-multiaddr"
)

func TestKeptPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := member(t, dir, "a")
	open := func() (host.Host, string) {
		h, err := NewHost(HostConfig{Members: m, Dir: filepath.Join(dir, "membership")})
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.Addrs()[0].ValueForProtocol(ma.P_TCP)
		if err != nil {
			t.Fatal(err)
		}
		return h, p
	}
	h1, p1 := open()
	h2, p2 := open() // taken
	if p2 == p1 {
		t.Error("two hosts at one port")
	}
	h1.Close()
	h2.Close()
	h3, p3 := open()
	h3.Close()
	if p3 != p2 {
		t.Errorf("port %s after a restart, %s before", p3, p2)
	}
}
