package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"meshnode/protocol"
)

// Nodes of a mesh find each other on a local network by multicast DNS (RFC 6762): each says where it is when it comes,
// when its addresses change, and when it is asked. Everybody hears what is said, so that one question serves all.
//
// On a Wi-Fi a multicast frame takes as long as fifty others, so that few are sent: a question lists those whom its sender is
// connected to, and they are silent; of the others three answer, those with the shortest random waits, because one is
// enough to hear of all; nobody asks what another has just asked.
const (
	// maxAnswers to one question. One would do, were it certain that it can be reached.
	maxAnswers = 3
	// answerWait is at most how long an answer waits, at random, for others to be enough: 50 nodes are 2.4 ms apart.
	answerWait = 120 * time.Millisecond
	// askGap is how long a question of any node's serves all.
	askGap = time.Second
	// lanTTL is how long others may remember what was said.
	lanTTL = 120 * time.Second
	// maxPacket is what is sent at most: one frame of any network. maxHeard is what is read.
	maxPacket, maxHeard = 1400, 9000
	// maxKnownAnswers in a question, for maxPacket.
	maxKnownAnswers = 40
	// maxOwnAddrs of one interface that are said: an IPv4 one and IPv6 ones, most of them for a day only.
	maxOwnAddrs = 8
	// lanSearch is how long FindOnLAN looks.
	lanSearch = 6 * time.Second
	// lanRetry where no interface can be used, beside each change of the interfaces.
	lanRetry = 30 * time.Second
)

// sayTimes and askTimes are when a node says where it is, and asks, after its networks changed: again and again, because a
// switch or an access point forwards nothing at first, and a frame of multicast is not sent again when it is lost. After
// the last question it asks every askPeriod, unless others have.
var (
	sayTimes  = []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}
	askTimes  = []time.Duration{0, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second}
	askPeriod = time.Minute
)

var (
	group4 = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	group6 = &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: 5353}
)

// lan is one service on the local networks: what is said and asked there. It belongs to the goroutine of run, but for use and
// ask.
type lan struct {
	service string // fully qualified
	name    string // of this node in it, fully qualified; "" if it says nothing
	asking  string // whom a question is for, fully qualified; the service: all
	// text is what the node says on an interface: nothing, if it is empty.
	text func(face) []string
	// heard gets what another says. Anybody on the network may have written it.
	heard func(text []string)
	// known are the names of nodes that need not answer, because they are connected.
	known func() map[string]bool
	log   *slog.Logger

	wake    chan struct{}
	packets chan heardPacket

	mu     sync.Mutex // guards what other goroutines want
	nets   networks
	reopen bool // with nets
	anew   bool // as if all interfaces were new
	asks   bool

	v4    *ipv4.PacketConn
	v6    *ipv6.PacketConn
	close func()
	deaf  bool      // there is no interface for it, and that was said
	retry time.Time // of open, with the same networks; zero: it works
	faces map[int]*lanFace
	names map[string]time.Time // heard lately, for known answers
}

// lanFace is an interface in use.
type lanFace struct {
	face
	text    string // of the face, to see that it has changed
	says    []time.Time
	asks    []time.Time
	fresh   bool      // nothing was asked yet
	asked   time.Time // the last question of anybody's
	answer  time.Time // when a question is answered; zero: none waits
	answers []string  // who has answered since it was asked
}

type heardPacket struct {
	face int // the interface's index; 0: not known
	data []byte
}

func newLAN(service string, log *slog.Logger) *lan {
	service += ".local."
	return &lan{
		service: service, asking: service, log: log, faces: map[int]*lanFace{}, names: map[string]time.Time{}, close: func() {},
		text: func(face) []string { return nil }, known: func() map[string]bool { return nil },
		wake: make(chan struct{}, 1), packets: make(chan heardPacket, 64),
	}
}

// use hands over the networks that there are now. Where an interface is new or has other addresses, the node says where it
// is and asks; everywhere if anew.
func (l *lan) use(n networks, anew bool) {
	l.want(func() { l.nets, l.reopen, l.anew = n, true, l.anew || anew })
}

// ask asks soon, unless somebody else does: a member was lost.
func (l *lan) ask() { l.want(func() { l.asks = true }) }

func (l *lan) want(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run serves until ctx ends.
func (l *lan) run(ctx context.Context) {
	defer func() { l.close() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(l.due())
		select {
		case <-ctx.Done():
			l.goodbye()
			return
		case <-l.wake:
			l.mu.Lock()
			nets, reopen, anew, asks := l.nets, l.reopen, l.anew, l.asks
			l.reopen, l.anew, l.asks = false, false, false
			l.mu.Unlock()
			if reopen {
				l.open(nets, anew)
			}
			if asks {
				l.askSoon()
			}
		case p := <-l.packets:
			l.take(p)
		case <-timer.C:
		}
	}
}

func (l *lan) askSoon() {
	at := time.Now().Add(20*time.Millisecond + rand.N(230*time.Millisecond))
	for _, f := range l.faces {
		f.asks = append(f.asks, at, at.Add(time.Second))
		slices.SortFunc(f.asks, time.Time.Compare)
		f.asks = f.asks[:min(len(f.asks), 2*len(askTimes))]
	}
}

// open takes the interfaces into use, in place of those before.
func (l *lan) open(n networks, anew bool) {
	l.close()
	l.close = func() {}
	l.v4, l.v6 = nil, nil
	old := l.faces
	l.faces = map[int]*lanFace{}
	now := time.Now()
	var use []face
	for _, f := range n.faces {
		text := f.text()
		if f.Flags&net.FlagMulticast == 0 || text == "" {
			continue
		}
		use = append(use, f)
		lf := &lanFace{face: f, text: text}
		if was := old[f.Index]; was != nil && was.text == text && !anew {
			lf.says, lf.asks, lf.fresh, lf.asked = was.says, was.asks, was.fresh, was.asked
		} else {
			lf.fresh = true
			for _, d := range sayTimes {
				lf.says = append(lf.says, now.Add(d))
			}
			jitter := rand.N(20 * time.Millisecond)
			for _, d := range askTimes {
				lf.asks = append(lf.asks, now.Add(d+jitter))
			}
		}
		l.faces[f.Index] = lf
	}
	l.retry = time.Time{}
	if len(use) == 0 {
		l.sayWhy(errNoFace)
		return
	}
	err4, err6 := l.open4(use), l.open6(use)
	if err4 != nil && err6 != nil {
		clear(l.faces)
		l.sayWhy(errors.Join(err4, err6))
		l.retry = time.Now().Add(lanRetry)
		return
	}
	l.deaf = false
	var readers sync.WaitGroup
	ended := make(chan struct{})
	read := func(next func([]byte) (n, face int, err error)) {
		buf := make([]byte, maxHeard)
		for {
			n, face, err := next(buf)
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				select { // a passing fault of the network, or a lasting one: it is closed when the interfaces change
				case <-ended:
					return
				case <-time.After(100 * time.Millisecond):
					continue
				}
			}
			// Other services are the most of what is said on a network.
			if !bytes.Contains(bytes.ToLower(buf[:n]), []byte(l.service[:strings.IndexByte(l.service, '.')])) {
				continue
			}
			select {
			case l.packets <- heardPacket{face, bytes.Clone(buf[:n])}:
			case <-ended:
				return
			default: // a flood
			}
		}
	}
	if c := l.v4; c != nil {
		readers.Go(func() {
			read(func(b []byte) (n, face int, err error) {
				n, cm, _, err := c.ReadFrom(b)
				if cm != nil {
					face = cm.IfIndex
				}
				return n, face, err
			})
		})
	}
	if c := l.v6; c != nil {
		readers.Go(func() {
			read(func(b []byte) (n, face int, err error) {
				n, cm, _, err := c.ReadFrom(b)
				if cm != nil {
					face = cm.IfIndex
				}
				return n, face, err
			})
		})
	}
	l.close = func() {
		close(ended)
		if l.v4 != nil {
			l.v4.Close()
		}
		if l.v6 != nil {
			l.v6.Close()
		}
		readers.Wait()
	}
}

var errNoFace = errors.New("no interface with an address and multicast is up")

// sayWhy says once why there is no mDNS.
func (l *lan) sayWhy(err error) {
	if !l.deaf {
		l.log.Info("mDNS does not work here now; it is tried again when the network changes", "err", err)
	}
	l.deaf = true
}

// open4 listens where all that speak mDNS on this machine do: the address is a multicast one, so that Go lets many have the port.
func (l *lan) open4(use []face) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(224, 0, 0, 0), Port: 5353})
	if err != nil {
		return err
	}
	p := ipv4.NewPacketConn(c)
	p.SetControlMessage(ipv4.FlagInterface, true) // Windows cannot; then an answer goes to all interfaces
	p.SetMulticastTTL(255)
	p.SetMulticastLoopback(true) // for other nodes on this machine
	joined := 0
	for _, f := range use {
		if err = p.JoinGroup(&f.Interface, group4); err == nil {
			joined++
		}
	}
	if joined == 0 {
		c.Close()
		return fmt.Errorf("IPv4: join %s: %w", group4.IP, err)
	}
	l.v4 = p
	return nil
}

func (l *lan) open6(use []face) error {
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP("ff02::"), Port: 5353})
	if err != nil {
		return err
	}
	p := ipv6.NewPacketConn(c)
	p.SetControlMessage(ipv6.FlagInterface, true)
	p.SetMulticastHopLimit(255)
	p.SetMulticastLoopback(true)
	joined := 0
	for _, f := range use {
		if err = p.JoinGroup(&f.Interface, group6); err == nil {
			joined++
		}
	}
	if joined == 0 {
		c.Close()
		return fmt.Errorf("IPv6: join %s: %w", group6.IP, err)
	}
	l.v6 = p
	return nil
}

// due does what is due and returns how long there is nothing to do.
func (l *lan) due() time.Duration {
	now := time.Now()
	wait := time.Hour
	until := func(t time.Time) { wait = min(wait, max(0, t.Sub(now))) }
	if !l.retry.IsZero() {
		if !now.Before(l.retry) {
			l.retry = time.Time{}
			l.want(func() { l.reopen, l.anew = true, true })
		} else {
			until(l.retry)
		}
	}
	for _, f := range l.faces {
		if len(f.says) > 0 && !now.Before(f.says[0]) {
			for len(f.says) > 0 && !now.Before(f.says[0]) {
				f.says = f.says[1:]
			}
			f.answer = time.Time{} // this is one
			l.say(f, lanTTL)
		}
		if !f.answer.IsZero() && !now.Before(f.answer) {
			f.answer = time.Time{}
			if len(f.answers) < maxAnswers {
				l.say(f, lanTTL)
			}
		}
		if len(f.asks) > 0 && !now.Before(f.asks[0]) {
			for len(f.asks) > 0 && !now.Before(f.asks[0]) {
				f.asks = f.asks[1:]
			}
			gap := askGap
			if len(f.asks) == 0 {
				f.asks = []time.Time{now.Add(askPeriod - askPeriod/8 + rand.N(askPeriod/4))}
				gap = askPeriod / 2
			}
			if f.fresh || now.Sub(f.asked) >= gap {
				f.fresh, f.asked = false, now
				l.question(f)
			}
		}
		if len(f.says) > 0 {
			until(f.says[0])
		}
		if !f.answer.IsZero() {
			until(f.answer)
		}
		if len(f.asks) > 0 {
			until(f.asks[0])
		}
	}
	return wait
}

// say says where this node is.
func (l *lan) say(f *lanFace, ttl time.Duration) {
	if l.name == "" {
		return
	}
	text := l.text(f.face)
	if len(text) == 0 {
		return
	}
	m := &dns.Msg{Compress: true}
	m.Response, m.Authoritative = true, true
	head := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
	}
	m.Answer = []dns.RR{
		&dns.PTR{Hdr: head(l.service, dns.TypePTR), Ptr: l.name},
		&dns.TXT{Hdr: head(l.name, dns.TypeTXT), Txt: text},
		// For browsers of services, which want to see a host and its address; nodes read the text alone.
		&dns.SRV{Hdr: head(l.name, dns.TypeSRV), Port: 4001, Target: l.name},
	}
	for _, p := range f.addrs {
		switch a := p.Addr(); {
		case a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: head(l.name, dns.TypeA), A: a.AsSlice()})
		case !a.IsLinkLocalUnicast() && len(m.Answer) < 3+maxOwnAddrs:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head(l.name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	for m.Len() > maxPacket && len(m.Answer) > 3 {
		m.Answer = m.Answer[:len(m.Answer)-1]
	}
	l.send(f, m)
}

// goodbye says that this node goes.
func (l *lan) goodbye() {
	for _, f := range l.faces {
		l.say(f, 0)
	}
}

// question asks who is there, but for those who are known well.
func (l *lan) question(f *lanFace) {
	m := &dns.Msg{Compress: true}
	m.Question = []dns.Question{{Name: l.asking, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}
	now, known := time.Now(), l.known()
	for name, at := range l.names {
		if now.Sub(at) > time.Hour {
			delete(l.names, name)
		} else if len(m.Answer) < maxKnownAnswers && known[name] {
			m.Answer = append(m.Answer, &dns.PTR{
				Hdr: dns.RR_Header{Name: l.service, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: uint32(lanTTL / time.Second)}, Ptr: name,
			})
		}
	}
	for m.Len() > maxPacket && len(m.Answer) > 0 {
		m.Answer = m.Answer[:len(m.Answer)-1]
	}
	l.send(f, m)
}

// send is best effort: what is lost is said again.
func (l *lan) send(f *lanFace, m *dns.Msg) {
	b, err := m.Pack()
	if err != nil {
		l.log.Warn("mDNS: pack a message", "err", err)
		return
	}
	if l.v4 != nil && l.v4.SetMulticastInterface(&f.Interface) == nil {
		l.v4.WriteTo(b, nil, group4)
	}
	if l.v6 != nil && l.v6.SetMulticastInterface(&f.Interface) == nil {
		l.v6.WriteTo(b, nil, group6)
	}
}

// take reads a packet. Anybody on the network may have sent it.
func (l *lan) take(p heardPacket) {
	m := &dns.Msg{}
	if m.Unpack(p.data) != nil {
		return
	}
	faces := l.faces
	if f := l.faces[p.face]; f != nil {
		faces = map[int]*lanFace{p.face: f}
	}
	if !m.Response {
		l.takeQuestion(m, faces)
		return
	}
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		t, ok := rr.(*dns.TXT)
		if !ok {
			continue
		}
		name := strings.ToLower(t.Hdr.Name)
		if name == l.name || !strings.HasSuffix(name, "."+l.service) || len(t.Txt) > 4*protocol.MaxMemberAddresses {
			continue
		}
		for _, f := range faces {
			if !slices.Contains(f.answers, name) && len(f.answers) < maxAnswers {
				f.answers = append(f.answers, name)
			}
		}
		if t.Hdr.Ttl == 0 {
			delete(l.names, name)
			continue
		}
		if _, ok := l.names[name]; ok || len(l.names) < 4*MaxMembers {
			l.names[name] = time.Now()
		}
		l.heard(t.Txt)
		return // one node speaks in one packet
	}
}

func (l *lan) takeQuestion(m *dns.Msg, faces map[int]*lanFace) {
	for _, q := range m.Question {
		asked := strings.ToLower(q.Name)
		if asked != l.service && asked != l.name {
			continue
		}
		mine := slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
			p, ok := rr.(*dns.PTR)
			return ok && strings.ToLower(p.Ptr) == l.name
		})
		for _, f := range faces {
			if asked == l.service {
				f.asked = time.Now()
			}
			if mine || l.name == "" {
				continue
			}
			switch {
			case asked == l.name: // nobody else can answer that
				l.say(f, lanTTL)
			case f.answer.IsZero():
				f.answer, f.answers = time.Now().Add(5*time.Millisecond+rand.N(answerWait)), nil
			}
		}
		return
	}
}
