package members

import (
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/protocol"
)

// tunnel is an end of a channel that has proven both keys, without the cryptography.
type tunnel struct {
	net.Conn
	local, remote peer.ID
}

func (c *tunnel) LocalPeer() peer.ID                 { return c.local }
func (c *tunnel) RemotePeer() peer.ID                { return c.remote }
func (c *tunnel) RemotePublicKey() crypto.PubKey     { return nil }
func (c *tunnel) ConnState() network.ConnectionState { return network.ConnectionState{} }

// admission is the exchange of a, who dials, with b.
func admission(a, b *Membership) (dialer, listener error) {
	x, y := net.Pipe()
	limit := time.Now().Add(5 * time.Second)
	x.SetDeadline(limit)
	y.SetDeadline(limit)
	done := make(chan error, 1)
	go func() {
		_, err := b.admitIn(&tunnel{y, b.self, a.self}, false, func(int64) {})
		y.Close()
		done <- err
	}()
	_, dialer = a.admitOut(&tunnel{x, a.self, b.self}, false)
	x.Close()
	return dialer, <-done
}

// clock is one machine's, which a test sets.
type clock struct{ unix atomic.Int64 }

func newClock(t time.Time) *clock {
	c := &clock{}
	c.set(t)
	return c
}
func (c *clock) set(t time.Time)         { c.unix.Store(t.Unix()) }
func (c *clock) now() time.Time          { return time.Unix(c.unix.Load(), 0) }
func (c *clock) forward(d time.Duration) { c.unix.Add(int64(d / time.Second)) }

// admit makes m a member by a ticket of by, without a network.
func admit(t testing.TB, by, m *Membership, o InviteOptions) {
	t.Helper()
	text, err := by.Invite(o)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := parseTicket(text)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := keyOf(m.self)
	reply := by.redeem(&protocol.JoinRequest{Mesh: ticket.Mesh, Ticket: ticketID(ticket.Secret), Proof: joinProof(ticket.Secret, ticket.Mesh, ticket.Inviter, own), Name: m.name}, m.self, "test")
	if reply.Denial != protocol.Denial_ADMITTED {
		t.Fatal(reply.Reason)
	}
	if err := m.enter(ticket, reply, by.self, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := by.Add(reply.Issued); err != nil {
		t.Fatal(err)
	}
}

// together has two members meet as nodes do: the exchange, again if it brought a renewal, and then what each can renew for the other.
func together(a, b *Membership) error {
	err, _ := admission(a, b)
	if errors.Is(err, errRenewed) || errors.Is(err, ErrExpired) { // b's, if this one could renew it, is good now
		err, _ = admission(a, b)
	}
	if err != nil {
		return err
	}
	for _, x := range [][2]*Membership{{a, b}, {b, a}} {
		if c, ok := x[0].Certificate(x[1].self); ok {
			if chain := x[0].Renew(c); chain != nil {
				if err := x[1].TakeRenewal(chain); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// TestTwoHundredDays: a mesh of five is whole for most of a year, though one of its admins lies in a drawer for months; which comes back into it. All that
// time every certificate is renewed long before its end.
func TestTwoHundredDays(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	c := newClock(time.Now())
	one := func(name string) *Membership { return open(t, "", Options{Name: name, Now: c.now}) }
	desk, lap, pad, guest, other := one("desk"), one("lap"), one("pad"), one("guest"), one("other")
	admit(t, desk, lap, InviteOptions{Mine: true})
	admit(t, desk, pad, InviteOptions{Mine: true})
	admit(t, lap, guest, InviteOptions{})
	admit(t, pad, other, InviteOptions{})
	all := []*Membership{desk, lap, pad, guest, other}
	shortest := lifetime
	for d := 0; d <= 200; d += 4 {
		drawer := d >= 10 && d < 160
		for i, a := range all {
			if err := a.Maintain(); err != nil {
				t.Fatal(err)
			}
			for _, b := range all[i+1:] {
				if drawer && (a == lap || b == lap) {
					continue
				}
				if err := together(a, b); err != nil {
					t.Fatalf("day %d: %s and %s: %v", d, a.Name(), b.Name(), err)
				}
				if err := together(b, a); err != nil {
					t.Fatalf("day %d: %s and %s: %v", d, b.Name(), a.Name(), err)
				}
			}
			if !(drawer && a == lap) && d != 160 {
				shortest = min(shortest, a.Own().NotAfter.Sub(c.now()))
			}
		}
		c.forward(4 * day)
	}
	t.Logf("the shortest that a certificate had left: %.0f days", shortest.Hours()/24)
	if shortest < 50*day {
		t.Errorf("a certificate was renewed only %v before its end", shortest)
	}
	// guest came by lap, was renewed by others meanwhile, and lap still may put it out; pad may not.
	if _, err := pad.Revoke(guest.self, RevokeOptions{}); !errors.Is(err, ErrNotAbove) {
		t.Errorf("who did not admit it revokes it: %v", err)
	}
	if _, err := lap.Revoke(guest.self, RevokeOptions{}); err != nil {
		t.Errorf("who admitted it: %v", err)
	}
	if err := together(lap, desk); err != nil {
		t.Fatal(err)
	}
	if err := together(desk, guest); err == nil {
		t.Error("a revoked member is let in with a certificate that somebody else renewed")
	}
}

// TestFirstMachineLost: without the machine that holds the root key, other admins renew and admit for as long as their own
// certificates last; the recovery code makes another one what that was, for everybody at once.
func TestFirstMachineLost(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	c := newClock(time.Now())
	one := func(name string) *Membership { return open(t, "", Options{Name: name, Now: c.now}) }
	desk, lap, pad, late := one("desk"), one("lap"), one("pad"), one("late")
	code := desk.Opened().RecoveryCode
	admit(t, desk, lap, InviteOptions{Mine: true})
	c.forward(40 * day)
	admit(t, desk, pad, InviteOptions{Mine: true})
	c.forward(30 * day)
	// desk is gone. pad, admitted later, renews lap, until its own end and not longer.
	if err := together(lap, pad); err != nil {
		t.Fatal(err)
	}
	if got, want := lap.Own().NotAfter, pad.Own().NotAfter; !got.Equal(want) {
		t.Errorf("renewed by another admin until %v, and that one's ends on %v", got, want)
	}
	admit(t, pad, late, InviteOptions{})
	if err := together(late, lap); err != nil {
		t.Fatal(err)
	}
	c.forward(58 * day) // two days before all ends
	if err := lap.Recover(code); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Membership{pad, late} {
		if err := together(m, lap); err != nil {
			t.Fatal(err)
		}
		if left := m.Own().NotAfter.Sub(c.now()); left < 89*day {
			t.Errorf("%s was renewed for %v", m.Name(), left)
		}
	}
	// Long ended, but not revoked: good for its renewal and nothing else, while it is not forgotten.
	desk.Recover(code) // as it was: the code changes nothing there
	c.forward(100 * day)
	lap.Maintain()
	if err, _ := admission(pad, lap); !errors.Is(err, errRenewed) {
		t.Errorf("ended ten days ago: %v", err)
	}
	if err := together(pad, lap); err != nil {
		t.Error(err)
	}
	for range 3 {
		c.forward(60 * day)
		lap.Maintain()
		if err := together(pad, lap); err != nil {
			t.Fatal(err)
		}
	}
	lap.Maintain()
	var refused *Refused
	if err, _ := admission(late, lap); !errors.As(err, &refused) || refused.Denial != protocol.Denial_EXPIRED {
		t.Errorf("ended long ago: %v", err)
	}
	if _, err := lap.Revoke(desk.self, RevokeOptions{}); err == nil {
		t.Error("revoked a member that is forgotten")
	}
}

// TestTwoAdminsApart: what two admins do while they cannot reach each other is all there when they meet.
func TestTwoAdminsApart(t *testing.T) {
	t.Parallel()
	one := func(name string) *Membership { return open(t, "", Options{Name: name}) }
	desk, lap, pad := one("desk"), one("lap"), one("pad")
	admit(t, desk, lap, InviteOptions{Mine: true})
	admit(t, desk, pad, InviteOptions{Mine: true})
	a, b, c, d := one("a"), one("b"), one("c"), one("d")
	admit(t, lap, a, InviteOptions{})
	admit(t, lap, b, InviteOptions{})
	for _, m := range []*Membership{a, b, lap} {
		if err := together(m, pad); err != nil {
			t.Fatal(err)
		}
	}
	// Apart: lap puts a out and admits c; pad admits d, and a once more, with a ticket of its own.
	if _, err := lap.Revoke(a.self, RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	admit(t, lap, c, InviteOptions{})
	admit(t, pad, d, InviteOptions{})
	if err := a.Join(ctx(t), "", JoinOptions{}); err == nil {
		t.Fatal("no ticket")
	}
	admit(t, pad, a, InviteOptions{})
	if err := together(a, d); err != nil {
		t.Fatalf("before the others are met: %v", err)
	}
	// Together.
	if err := together(lap, pad); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Membership{lap, pad} {
		if err := together(a, m); err == nil || !m.Revoked(a.self) {
			t.Errorf("%s lets in who was put out while it was away: %v", m.Name(), err)
		}
		for _, good := range []*Membership{b, c, d} {
			if err := together(good, m); err != nil {
				t.Errorf("%s and %s: %v", good.Name(), m.Name(), err)
			}
		}
	}
	if err := together(a, d); err == nil {
		t.Error("who met one of them since lets it in")
	}
}

// TestClockNeverSet: a machine whose clock says 2015 is let in, lets in whom it should and nobody else, is renewed, and says what is
// wrong with it.
func TestClockNeverSet(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	c, old := newClock(time.Now().Add(1000*day)), newClock(time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC))
	desk, brief := open(t, "", Options{Name: "desk", Now: c.now}), open(t, "", Options{Name: "brief", Now: c.now})
	admit(t, desk, brief, InviteOptions{})
	c.forward(95 * day) // brief's ended meanwhile
	desk.Maintain()
	pi := open(t, "", Options{Name: "pi", Now: old.now})
	admit(t, desk, pi, InviteOptions{Mine: true})
	for _, x := range [][2]*Membership{{pi, desk}, {desk, pi}} {
		if err := together(x[0], x[1]); err != nil {
			t.Errorf("%s dials %s: %v", x[0].Name(), x[1].Name(), err)
		}
	}
	// pi may not renew it, for pi's own certificate could not be better; it is an admin, so it may. Either way it is not let in as it is.
	if cert, denial, err := pi.judge(brief.own.chain, brief.self); !errors.Is(err, ErrExpired) || denial != protocol.Denial_EXPIRED {
		t.Errorf("a clock in 2015 takes a certificate that has ended: %v, %v", cert, err)
	}
	if tr := pi.Trouble(); len(tr) != 1 || !strings.Contains(tr[0], "clock") || !strings.Contains(tr[0], "2015") {
		t.Errorf("it says %q", tr)
	}
	// Started anew, still in 2015: the same.
	pi = open(t, pi.dir, Options{Name: "pi", Now: old.now})
	if err := together(pi, desk); err != nil {
		t.Error(err)
	}
	if _, _, err := pi.judge(brief.own.chain, brief.self); !errors.Is(err, ErrExpired) {
		t.Errorf("after a start in 2015: %v", err)
	}
	// Its certificate is renewed, though by what it knows that is far ahead; and what it revokes counts.
	c.forward(95 * day)
	desk.Maintain()
	if err := together(desk, pi); err != nil {
		t.Fatal(err)
	}
	if left := pi.Own().NotAfter.Sub(c.now()); left < 89*day {
		t.Errorf("in 2015, renewed for %v", left)
	}
	guest := open(t, "", Options{Name: "guest", Now: c.now})
	admit(t, pi, guest, InviteOptions{})
	if err := together(guest, desk); err != nil {
		t.Errorf("who was admitted in 2015: %v", err)
	}
	if _, err := pi.Revoke(guest.self, RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := together(pi, desk); err != nil {
		t.Fatal(err)
	}
	if err := together(guest, desk); err == nil {
		t.Error("what was revoked in 2015 does not count")
	}
	// The clock is set: nothing is left of it.
	old.set(c.now())
	if len(pi.Trouble()) != 0 {
		t.Errorf("the clock is right again, and it says %q", pi.Trouble())
	}
	if err := together(pi, desk); err != nil {
		t.Error(err)
	}
}

// TestClockFarAhead: a machine whose clock says 2099, be it the one with the root key, ends nobody else, and is whole again when its clock is.
func TestClockFarAhead(t *testing.T) {
	t.Parallel()
	c, far := newClock(time.Now()), newClock(time.Now())
	desk, lap, pad := open(t, "", Options{Name: "desk", Now: far.now}), open(t, "", Options{Name: "lap", Now: c.now}), open(t, "", Options{Name: "pad", Now: c.now})
	admit(t, desk, lap, InviteOptions{Mine: true})
	admit(t, desk, pad, InviteOptions{Mine: true})
	if err := together(lap, pad); err != nil {
		t.Fatal(err)
	}
	if err := together(lap, desk); err != nil {
		t.Fatal(err)
	}
	// A hundred days ahead it takes theirs for ended, and would renew them.
	ends := lap.Own().NotAfter
	far.forward(100 * 24 * time.Hour)
	if err, _ := admission(lap, desk); err == nil {
		t.Error("a hundred days ahead, it takes everybody's certificates for good")
	}
	if !lap.Own().NotAfter.Equal(ends) {
		t.Errorf("took a certificate until %v by a clock a hundred days ahead", lap.Own().NotAfter)
	}
	far.set(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC))
	desk = open(t, desk.dir, Options{Name: "desk", Now: far.now})
	desk.Maintain()
	for _, m := range []*Membership{lap, pad} {
		admission(m, desk)
		admission(desk, m)
		if end := m.Own().NotAfter; end.After(c.now().Add(2 * lifetime)) {
			t.Errorf("%s took a certificate until %v", m.Name(), end)
		}
		if len(m.Trouble()) != 0 {
			t.Errorf("%s says %q", m.Name(), m.Trouble())
		}
	}
	if tr := desk.Trouble(); len(tr) != 1 || !strings.Contains(tr[0], "2099") {
		t.Errorf("it says %q", tr)
	}
	if err := together(lap, pad); err != nil {
		t.Errorf("a clock in 2099 parted two others: %v", err)
	}
	far.set(c.now())
	if err := together(lap, desk); err != nil {
		t.Errorf("its clock is right again: %v", err)
	}
	desk = open(t, desk.dir, Options{Name: "desk", Now: far.now})
	if err := together(desk, pad); err != nil {
		t.Errorf("its clock is right again, after a start: %v", err)
	}
	late := open(t, "", Options{Name: "late", Now: c.now})
	admit(t, desk, late, InviteOptions{})
	if err := together(late, lap); err != nil {
		t.Error(err)
	}
}
