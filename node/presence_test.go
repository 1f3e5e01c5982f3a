package node

import (
	"sync/atomic"
	"testing"
	"time"

	"meshnode/protocol"
)

// When a connection counts as dead: looks every half second, at what has come so far.
func TestSilence(t *testing.T) {
	t.Parallel()
	const tick = watchEvery
	never := time.Duration(0)
	for name, c := range map[string]struct {
		leasedFrom, wokeAt time.Duration
		pauseAt            time.Duration // a gap of our own before this look
		hears              func(at time.Duration) bool
		asked, dead        time.Duration
	}{
		"nothing":                      {leasedFrom: time.Hour, asked: idleAsk, dead: idleDead},
		"nothing, leases":              {asked: leasedAsk, dead: leasedDead},
		"nothing, leases only lately":  {leasedFrom: 6 * time.Second, asked: 7500 * time.Millisecond, dead: 9 * time.Second},
		"beats":                        {leasedFrom: time.Hour, hears: func(at time.Duration) bool { return at%(5500*time.Millisecond) == 0 }, asked: never, dead: never},
		"beats, leases":                {hears: func(at time.Duration) bool { return true }, asked: never, dead: never},
		"blobs, and no beats, leases":  {hears: func(at time.Duration) bool { return at%time.Second == 0 }, asked: never, dead: never},
		"an answer to what was asked":  {leasedFrom: time.Hour, hears: func(at time.Duration) bool { return at == 8*time.Second }, asked: idleAsk, dead: 18 * time.Second},
		"after a sleep, nothing":       {leasedFrom: time.Hour, wokeAt: time.Second, asked: time.Second, dead: time.Second + wakeDead},
		"after a sleep, an answer":     {leasedFrom: time.Hour, wokeAt: time.Second, hears: func(at time.Duration) bool { return at >= 1500*time.Millisecond }, asked: time.Second, dead: never},
		"own pause, leases":            {pauseAt: 1500 * time.Millisecond, hears: func(at time.Duration) bool { return at >= 2500*time.Millisecond }, asked: 2 * time.Second, dead: never},
		"own pause, and then nothing":  {pauseAt: 1500 * time.Millisecond, asked: 2 * time.Second, dead: leasedDead + tick},
		"own pause, shortly of a beat": {leasedFrom: time.Hour, pauseAt: 7 * time.Second, hears: func(at time.Duration) bool { return at > 7*time.Second }, asked: never, dead: never},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, heard := &watched{}, uint64(1)
			w.heard = heard
			var asked, died time.Duration
			for at := tick; at <= 30*time.Second && died == 0; at += tick {
				if c.hears != nil && c.hears(at) {
					heard++
				}
				gap := tick
				if at == c.pauseAt {
					gap = 0
				}
				switch w.look(heard, gap, at > c.leasedFrom, at == c.wokeAt) {
				case ask:
					if asked == 0 {
						asked = at
					}
				case dead:
					died = at
				}
			}
			if asked != c.asked || died != c.dead {
				t.Errorf("asked at %v, dead at %v; want %v and %v", asked, died, c.asked, c.dead)
			}
		})
	}
}

// sleeper is a machine that sleeps when a test says so.
type sleeper struct{ slept atomic.Int64 }

func (s *sleeper) sleep(d time.Duration) { s.slept.Add(int64(d)) }

func (s *sleeper) config(c *Config) {
	c.sleptSoFar = func() time.Duration { return time.Duration(s.slept.Load()) }
}

// A sleep is noticed at once, however long nothing happens otherwise; live connections stay, and work goes on.
func TestWake(t *testing.T) {
	t.Parallel()
	var bed sleeper
	a := start(t, "a", 1)
	b, stop := startIn(t, t.TempDir(), "b", 1, bed.config)
	t.Cleanup(stop)
	join(t, a, b)
	s := b.sessions.get(a.self)
	bed.sleep(8 * time.Hour)
	if age := s.heardAge(); age < 8*time.Hour {
		t.Errorf("after a sleep of 8 h the last message is %v old", age)
	}
	slept := time.Now()
	for !logged(b, "this computer has slept") {
		if time.Since(slept) > 5*time.Second {
			t.Fatal("nobody noticed")
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(slept)
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("noticed after %v, and not within 1 s", took)
	}
	for s.heardAge() > time.Hour { // the other side answers the challenge
		if time.Since(slept) > 5*time.Second {
			t.Fatal("the other side was not asked for a sign of life")
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(wakeDead + watchEvery) // the time in which a connection would be closed
	if b.sessions.get(a.self) != s {
		t.Error("a live connection was closed after a sleep")
	}
	if rs, _ := submit(t, a, "sum_primes.wasm", numbers(20)); rs[7].Status != protocol.Status_OK {
		t.Errorf("%+v", rs[7])
	}
}
