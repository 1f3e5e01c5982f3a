package tasks

// mean is a smoothed duration in nanoseconds: the average of the first ten observations, then an exponential
// one with weight 1/10. Integers only: what decides must come out equal on every processor.
type mean struct {
	ns int64 // 0: no observation
	n  int64
}

func (m *mean) add(ns int64) {
	ns = max(ns, 1)
	m.n = min(m.n+1, 10)
	if m.n == 1 {
		m.ns = ns
		return
	}
	m.ns = max(1, m.ns+(ns-m.ns)/m.n)
}

// prior takes what others measured, as long as there is no own observation.
func (m *mean) prior(ns int64) {
	if m.n == 0 && ns > 0 {
		m.ns = ns
	}
}

func (m mean) us() uint64 {
	if m.ns == 0 {
		return 0
	}
	return uint64(max(1, m.ns/microsecond))
}
