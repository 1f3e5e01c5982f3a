package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/shirou/gopsutil/v4/process"

	"meshnode/discovery/members"
)

// What it costs a node to keep 60 and 300 members: connected ones with nothing to say, whose hosts' own work is in the figure, too, as they
// are in this process; and absent ones, in the first half minute and later. Percent of one core.
func BenchmarkKeep(b *testing.B) {
	me, err := process.NewProcess(int32(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	measure := func(b *testing.B, name string, d time.Duration) {
		used := func() float64 {
			t, err := me.Times()
			if err != nil {
				b.Fatal(err)
			}
			return t.User + t.System
		}
		before, at := used(), time.Now()
		time.Sleep(d)
		b.ReportMetric(100*(used()-before)/time.Since(at).Seconds(), name)
	}
	for _, n := range []int{60, 300} {
		for _, absent := range []bool{false, true} {
			b.Run(fmt.Sprintf("members=%d/absent=%v", n, absent), func(b *testing.B) {
				for range b.N {
					root := member(b, b.TempDir(), "root")
					h, err := NewHost(HostConfig{Members: root, Listen: []ma.Multiaddr{ma.StringCast(loopback)}})
					if err != nil {
						b.Fatal(err)
					}
					defer h.Close()
					all := []*members.Membership{root}
					hosts := []host.Host{h}
					for i := range n - 1 {
						m := member(b, b.TempDir(), fmt.Sprint("m", i))
						ticket, err := root.Invite(members.InviteOptions{Mine: true, Addrs: h.Addrs()})
						if err != nil {
							b.Fatal(err)
						}
						if err := m.Join(b.Context(), ticket, members.JoinOptions{}); err != nil {
							b.Fatal(err)
						}
						if !absent {
							o, err := NewHost(HostConfig{Members: m, Listen: []ma.Multiaddr{ma.StringCast(loopback)}})
							if err != nil {
								b.Fatal(err)
							}
							defer o.Close()
							hosts = append(hosts, o)
						}
						all = append(all, m)
					}
					if !absent {
						time.Sleep(time.Second)
						measure(b, "%hosts", 10*time.Second)
					}
					d, err := New(Config{Host: h, Members: root, Dir: filepath.Join(b.TempDir()), Logger: slog.New(slog.DiscardHandler)})
					if err != nil {
						b.Fatal(err)
					}
					ctx, cancel := context.WithCancel(b.Context())
					ended := make(chan struct{})
					go func() { defer close(ended); d.Run(ctx) }()
					addr := func(p peer.ID, i int) {
						a := ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1+i)) // refused
						if !absent {
							a = hosts[i].Addrs()[0]
						}
						d.do(ctx, func() { d.hint(p, hearsay, "test", a) })
					}
					for i, m := range all[1:] {
						addr(m.Self(), i+1)
					}
					if absent {
						measure(b, "%first-20s", 20*time.Second)
						time.Sleep(70 * time.Second)
						measure(b, "%later", 30*time.Second)
					} else {
						until(b, 60*time.Second, "all are connected", func() bool {
							for _, m := range all[1:] {
								if !d.connected(m.Self()) {
									return false
								}
							}
							return true
						})
						time.Sleep(5 * time.Second)
						measure(b, "%connected", 10*time.Second)
					}
					cancel()
					<-ended
				}
			})
		}
	}
}
