package discovery

import (
	"slices"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"meshnode/protocol"
)

// A member of another version says in the local network again and again that it is there: that is no reason to try it again, and
// another address is.
func TestOtherVersionIsTriedRarely(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect, and a knows where b is", func() bool { return a.has(b) && b.has(a) && len(a.state(b.Self()).Addrs) > 0 })
	b.stop()
	until(t, 5*time.Second, "b is gone", func() bool { return a.state(b.Self()).State != Connected && len(a.state(b.Self()).Addrs) > 0 })
	addrs := slices.Clone(a.state(b.Self()).Addrs)
	other := &protocol.Incompatible{Theirs: protocol.Versions{4}, Ours: protocol.Spoken}
	next := func(hints []ma.Multiaddr) time.Duration {
		left := make(chan time.Duration, 1)
		a.d.do(t.Context(), func() {
			k := a.d.peers[b.Self()]
			k.version, k.sign = other, time.Time{}
			k.next = k.nextTry(other)
			a.d.hint(b.Self(), hearsay, fromLAN, hints...)
			left <- time.Until(k.next)
		})
		return <-left
	}
	if in := next(addrs); in < incompatibleRetry/2 {
		t.Errorf("the next try is in %v, after a known address was heard", in)
	}
	if in := next([]ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/9")}); in > time.Minute {
		t.Errorf("the next try is in %v, after a new address was heard", in)
	}
}
