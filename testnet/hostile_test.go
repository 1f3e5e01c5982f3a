package testnet

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/node"
	"meshnode/protocol"
)

const (
	// hostileFor is how long each attack goes on, at least.
	hostileFor = 3 * time.Second
	// hostileMemory is what a node may need beyond its idle memory: the windows of one peer's streams and connections that have
	// shown no certificate, as far as limits allow them, and the garbage of as much again.
	hostileMemory = 300 << 20
	// hostileSlower is by how much a job may be slower, and hostileMore besides: its worker processes have the lowest priority, and the
	// attackers, in this process, the ordinary one. On a machine with two cores to itself it takes 0.9 s, where it takes 0.5 s alone.
	hostileSlower = 3
	hostileMore   = 30 * time.Second
	// hostileLog bytes a node may log: one that is flooded must not fill the disk.
	hostileLog = 64 << 10
)

// insider is a certified member that does what it likes. Its IDs sort before those of the nodes, so that it opens the streams.
type insider struct {
	t       *testing.T
	m       *members.Membership
	h       host.Host
	victims []peer.AddrInfo
}

var p2pAddr = regexp.MustCompile(`/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+`)

func newInsider(t *testing.T, n *Net, nodes ...int) *insider {
	x := &insider{t: t}
	for _, i := range nodes {
		st, err := n.Node(i).Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text := p2pAddr.FindString(strings.Join(st.Addrs, " "))
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			t.Fatalf("node %d is at %v: %v", i, st.Addrs, err)
		}
		x.victims = append(x.victims, *info)
	}
	for {
		var err error
		if x.m, err = members.Open(t.TempDir(), members.Options{Name: "insider", Volatile: true}); err != nil {
			t.Fatal(err)
		}
		lower := true
		for _, v := range x.victims {
			lower = lower && x.m.Self() < v.ID
		}
		if lower {
			break
		}
	}
	ticket, err := n.Node(nodes[0]).Client().Invite(t.Context(), node.InviteOptions{Expires: time.Hour, Uses: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.m.Join(t.Context(), ticket, members.JoinOptions{}); err != nil {
		t.Fatal(err)
	}
	listen, err := ma.NewMultiaddr("/ip4/127.0.0.1/tcp/0")
	if err != nil {
		t.Fatal(err)
	}
	if x.h, err = discovery.NewHost(discovery.HostConfig{Members: x.m, Listen: []ma.Multiaddr{listen}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.h.Close() })
	return x
}

// open opens a stream of a protocol to a victim; nil: it is not to be had now.
func (x *insider) open(ctx context.Context, v peer.AddrInfo, id string) network.Stream {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := x.h.Connect(ctx, v); err != nil {
		return nil
	}
	s, err := x.h.NewStream(ctx, v.ID, libp2pproto.ID(id))
	if err != nil {
		return nil
	}
	s.SetDeadline(time.Now().Add(2 * time.Second))
	return s
}

// protocols are all that a victim says that it speaks.
func (x *insider) protocols(ctx context.Context, v peer.AddrInfo) []string {
	for ctx.Err() == nil {
		if x.h.Connect(ctx, v) == nil {
			if ids, err := x.h.Peerstore().GetProtocols(v.ID); err == nil && len(ids) > 3 {
				var out []string
				for _, id := range ids {
					out = append(out, string(id))
				}
				return out
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// session is a stream of the scheduler's messages after the Hellos.
func (x *insider) session(ctx context.Context, v peer.AddrInfo) (network.Stream, *bufio.Reader) {
	s := x.open(ctx, v, protocol.PeerProtocol)
	if s == nil {
		return nil, nil
	}
	var seed [8]byte
	rand.Read(seed[:])
	b, err := protocol.AppendMessage(nil, &protocol.Hello{Version: protocol.Version, Name: "insider", Epoch: 1, Incarnation: binary.LittleEndian.Uint64(seed[:]), Slots: 1000, Runtimes: []string{"wasm"}})
	if err != nil {
		x.t.Fatal(err)
	}
	r := bufio.NewReader(s)
	if _, err := s.Write(b); err != nil {
		s.Reset()
		return nil, nil
	}
	if _, err := protocol.ReadMessage(r); err != nil {
		s.Reset()
		return nil, nil
	}
	return s, r
}

// frames writes frames to a session as fast as it takes them, and reads nothing.
func (x *insider) frames(ctx context.Context, v peer.AddrInfo, count *atomic.Int64, next func(i int) protocol.Message) {
	for ctx.Err() == nil {
		s, _ := x.session(ctx, v)
		if s == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for i := 0; ctx.Err() == nil; i++ {
			var b []byte
			for range 50 {
				var err error
				if b, err = protocol.AppendMessage(b, next(i)); err != nil {
					x.t.Error(err)
					return
				}
			}
			s.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := s.Write(b); err != nil {
				break
			}
			count.Add(50)
			time.Sleep(time.Millisecond) // 50,000 a second, if they are taken
		}
		s.Reset()
	}
}

// news has hints in it: addresses of every other member that lead to nowhere.
func (x *insider) news(i int) []byte {
	news := &protocol.MemberNews{}
	for _, c := range append(x.m.Members(), x.m.Own()) {
		r := &protocol.MemberRecord{Chain: c.Chain()}
		for k := range protocol.MaxMemberAddresses + 4 {
			a, _ := ma.NewMultiaddr(fmt.Sprintf("/ip4/127.%d.%d.%d/tcp/%d", 1+i%200, i/200%250, k, 1+k))
			r.Addresses = append(r.Addresses, a.Bytes())
		}
		news.Members = append(news.Members, r)
	}
	body, _ := proto.Marshal(news)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// brokenBytes are beginnings of streams that no protocol has.
func brokenBytes(r *mathrand.Rand) []byte {
	noise := make([]byte, 1+r.IntN(4000))
	rand.Read(noise)
	switch r.IntN(7) {
	case 0:
		return []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") // a length without an end
	case 1:
		return append([]byte{byte(1 + r.IntN(13)), 0xff, 0xff, 0xff, 0x7f}, noise...) // far over its limit
	case 2:
		return append([]byte{6, 0x80, 0x80, 0x40}, noise...) // a MiB that does not come
	case 3:
		return append([]byte{byte(1 + r.IntN(13)), byte(len(noise) & 0x7f)}, noise...) // garbage of a right length
	case 4:
		return nil // nothing
	case 5:
		return append(binary.AppendUvarint(nil, uint64(len(noise))), noise...)
	}
	return noise
}

// Outsiders and a member attack two nodes in all ways at once: a job of these goes on, their memory and their logs stay bounded, and
// afterwards they are as before.
func TestHostile(t *testing.T) {
	n := Start(t, 2, Options{Slots: 1, Env: []string{"MESHNODE_LOG=info"}})
	// Tasks that sleep need no processor, of which attackers and attacked here share two: their job shows what the nodes do.
	const tasks = 100
	program := []string{"submit", "-k", "--clock", "real", "bench/testdata/sleep.wasm", ":::"}
	for range tasks {
		program = append(program, "10")
	}
	job := func() time.Duration {
		t.Helper()
		began := time.Now()
		out := n.Node(1).CLI(program...)
		if out.Code != 0 || strings.Count(out.Stdout, "\n") != tasks {
			t.Errorf("a job ended with %+v", out)
		}
		return time.Since(began)
	}
	job() // compiles it
	normal := job()
	var idle [2]int64
	for i := range idle {
		idle[i] = resident(n.Node(i + 1).PID())
	}
	x := newInsider(t, n, 1, 2)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wait sync.WaitGroup
	var counts [9]atomic.Int64
	names := []string{"connections that say nothing", "connections with half a handshake", "streams never used", "broken beginnings", "beats", "loads and steal requests", "grants", "news with poisoned hints", "blob requests, nothing read"}
	for i, v := range x.victims {
		addr := strings.TrimPrefix(p2pAddr.FindString(n.Node(i+1).Ready), "/ip4/")
		addr = strings.Replace(strings.Split(addr, "/p2p/")[0], "/tcp/", ":", 1)
		// Strangers.
		for kind := range 2 {
			wait.Go(func() {
				var held []net.Conn
				defer func() {
					for _, c := range held {
						c.Close()
					}
				}()
				for ctx.Err() == nil {
					c, err := net.DialTimeout("tcp", addr, time.Second)
					if err != nil {
						time.Sleep(10 * time.Millisecond)
						continue
					}
					counts[kind].Add(1)
					if kind == 1 {
						c.Write([]byte("\x13/multistream/1.0.0\n\x12/meshnode/tls/2\n\x16\x03\x01\x01\x00\x01"))
					}
					if held = append(held, c); len(held) == 600 {
						held[0].Close()
						held = held[1:]
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		// The member.
		wait.Go(func() { // thousands of streams, not one of them used
			for ctx.Err() == nil {
				c := x.h.Network().ConnsToPeer(v.ID)
				if len(c) == 0 {
					x.h.Connect(ctx, v)
					continue
				}
				octx, cancel := context.WithTimeout(ctx, time.Second)
				if s, err := c[0].NewStream(octx); err == nil {
					s.SetWriteDeadline(time.Now().Add(time.Second))
					if counts[2].Add(1)%4 == 0 {
						s.Write([]byte{0xff})
					}
					time.AfterFunc(time.Second, func() { s.Reset() })
				} else {
					time.Sleep(5 * time.Millisecond)
				}
				cancel()
			}
		})
		wait.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(i), 7))
			ids := x.protocols(ctx, v)
			for k := 0; ctx.Err() == nil; k++ {
				s := x.open(ctx, v, ids[k%len(ids)])
				if s == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				s.Write(brokenBytes(r))
				counts[3].Add(1)
				switch r.IntN(3) {
				case 0:
					s.CloseWrite()
					time.AfterFunc(time.Second, func() { s.Reset() })
				case 1:
					time.AfterFunc(time.Second, func() { s.Reset() })
				default:
					s.Reset()
				}
			}
		})
		wait.Go(func() {
			kind := 0
			for ctx.Err() == nil {
				// One session a peer: in turn.
				kctx, cancel := context.WithTimeout(ctx, hostileFor/4)
				switch kind++; kind % 3 {
				case 0:
					x.frames(kctx, v, &counts[4], func(i int) protocol.Message {
						return &protocol.Beat{Ping: uint64(i), GrantsRead: uint64(i), HeardAgeMs: 1}
					})
				case 1:
					x.frames(kctx, v, &counts[5], func(i int) protocol.Message {
						if i%2 == 0 {
							return &protocol.Load{Epoch: 1, Pending: 1 << 30}
						}
						return &protocol.StealRequest{Id: uint64(i), Epoch: 1, Want: 1000, Free: 1000}
					})
				default:
					job := make([]byte, 16)
					x.frames(kctx, v, &counts[6], func(i int) protocol.Message {
						rand.Read(job)
						return &protocol.JobInfo{Job: job, Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: make([]byte, 32), Size: 1 << 20}}}
					})
				}
				cancel()
			}
		})
		wait.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				s := x.open(ctx, v, protocol.MembersProtocol)
				if s == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				s.Write(x.news(k))
				s.Close()
				counts[7].Add(1)
			}
		})
		wait.Go(func() {
			for ctx.Err() == nil {
				s := x.open(ctx, v, protocol.ID(protocol.NameBlob, protocol.Version))
				if s == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				req := make([]byte, 4000)
				rand.Read(req)
				for range 100 {
					if _, err := s.Write(req); err != nil {
						break
					}
					counts[8].Add(100)
				}
				time.AfterFunc(time.Second, func() { s.Reset() })
			}
		})
	}

	// Meanwhile.
	var most [2]atomic.Int64
	wait.Go(func() {
		for ctx.Err() == nil {
			for i := range most {
				most[i].Store(max(most[i].Load(), resident(n.Node(i+1).PID())))
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	time.Sleep(hostileFor / 2)
	began := time.Now()
	used := [2]float64{processorTime(t, n.Node(1).PID()), processorTime(t, n.Node(2).PID())}
	slow := job()
	time.Sleep(max(0, hostileFor-time.Since(began)))
	stop()
	wait.Wait()
	for i, name := range names {
		t.Logf("%s: %d", name, counts[i].Load())
		if counts[i].Load() == 0 {
			t.Errorf("%s: the attack did not take place", name)
		}
	}
	t.Logf("a job: %v, under attack %v", normal.Round(time.Millisecond), slow.Round(time.Millisecond))
	if slow > hostileSlower*normal+hostileMore {
		t.Errorf("a job took %v under attack and %v before", slow, normal)
	}
	for i := range used {
		used[i] = (processorTime(t, n.Node(i+1).PID()) - used[i]) / time.Since(began).Seconds()
	}
	t.Logf("of a core, while attacked: %.2f and %.2f; attackers %.2f", used[0], used[1], processorTime(t, os.Getpid())/time.Since(began).Seconds())
	for i := range most {
		t.Logf("node %d: resident %.1f MB, under attack at most %.1f MB, %d bytes logged", i+1, float64(idle[i])/1e6, float64(most[i].Load())/1e6, len(n.Node(i+1).Log()))
		t.Log(kinds(n.Node(i + 1).Log()))
		if m := most[i].Load(); m > idle[i]+hostileMemory {
			t.Errorf("node %d had %d bytes resident under attack, %d before", i+1, m, idle[i])
		}
		if l := len(n.Node(i + 1).Log()); l > hostileLog {
			t.Errorf("node %d logged %d bytes: %s", i+1, l, kinds(n.Node(i+1).Log()))
		}
	}
	// The two are still connected, with no other word needed, and work.
	x.h.Close()
	n.Node(1).AwaitPeers(1)
	if after := job(); after > hostileSlower*normal+hostileMore {
		t.Errorf("a job took %v after the attack and %v before", after, normal)
	}
}

// kinds counts a log's lines by their messages.
func kinds(log string) string {
	n := map[string]int{}
	for _, m := range regexp.MustCompile(`msg=("[^"]*"|\S+)`).FindAllString(log, -1) {
		n[m]++
	}
	return fmt.Sprint(n)
}
