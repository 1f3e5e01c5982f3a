package discovery

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshnode/protocol"
)

// What a member says of others takes no more memory than there can be members, however often it says it.
func TestSummariesAreBounded(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 10*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	conn := a.host.Network().ConnsToPeer(b.Self())[0]
	wanted := 0
	a.in(t, func() {
		for i := range uint64(5) {
			s := &protocol.MemberSummary{}
			for j := range uint64(maxSummary) {
				s.Members, s.Serials = append(s.Members, i<<32+j), append(s.Serials, 1)
			}
			a.d.takeNews(b.Self(), conn, &protocol.MemberNews{Summary: s})
		}
		wanted = len(a.d.outbox.to(b.Self()).certs)
	})
	if wanted == 0 || wanted > maxSummary {
		t.Errorf("%d certificates would be asked for, want at most %d", wanted, maxSummary)
	}
}

// Calls that come without end do not keep Run from its other work.
func TestCallsDoNotStarveRun(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	ctx, cancel := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	defer floods.Wait()
	defer cancel()
	var taken atomic.Int64
	for range 8 {
		floods.Go(func() {
			for ctx.Err() == nil {
				a.d.do(ctx, func() {
					taken.Add(1)
					for end := time.Now().Add(100 * time.Microsecond); time.Now().Before(end); {
					}
				})
			}
		})
	}
	until(t, 10*time.Second, "the flood is there", func() bool { return taken.Load() > 1000 })
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	until(t, 10*time.Second, "a shows the newcomer", func() bool { return a.state(b.Self()).Name == "b" })
}

// A member that says what is no good, again and again, does not fill the log.
func TestLogIsNotFlooded(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 10*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	began := time.Now()
	for range 20 {
		for _, news := range []*protocol.MemberNews{{Renewed: &protocol.Chain{}}, {Revocations: []*protocol.Revocation{{}}}} {
			if err := send(t.Context(), b.host, a.Self(), news, protocol.Spoken); err != nil {
				t.Fatal(err)
			}
		}
	}
	stranger := member(t, t.TempDir(), "stranger").Self()
	acl := &admitted{a.Membership, a.d.log, a.d.seldom}
	for range 20 {
		if acl.AllowConnect(b.Self(), nil, stranger) {
			t.Fatal("a circuit for a stranger")
		}
	}
	until(t, 10*time.Second, "all of it was heard", func() bool {
		return strings.Contains(a.log.String(), "a renewed certificate is no good") && strings.Contains(a.log.String(), "revocations told by a member") && strings.Contains(a.log.String(), "relay refused")
	})
	most := 3 * (1 + int(time.Since(began)/(10*time.Second)))
	if n := strings.Count(a.log.String(), "level=WARN"); n > most {
		t.Errorf("%d lines, want at most %d", n, most)
	}
}
