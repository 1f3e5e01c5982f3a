package members

import (
	"bytes"
	"crypto/ed25519"
	"time"
)

// earliest is before the first day of this program: a clock that is behind it was never set.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// now is the wall clock, unless that is behind a time that a member signed: such a clock is wrong, and judging by it
// would let expired certificates in. The caller holds mu, for reading at least.
func (m *Membership) now() time.Time {
	now := m.wall()
	newest := m.st.Newest
	if now.Before(earliest) {
		newest = max(newest, m.guess, earliest.Unix())
	}
	if newest := time.Unix(newest, 0); now.Before(newest) {
		return newest
	}
	return now
}

// see remembers the newest signed time, of what others signed. One more than a certificate's lifetime ahead of all that is known is
// not believed: an admin whose clock says 2099 must not end everybody else's certificates. But a clock that was never
// set knows nothing: then this node's own certificate says what time it was, until the clock is set. The caller holds mu.
func (m *Membership) see(c *Cert) {
	// What this machine's own clock said proves nothing to that clock.
	own := bytes.Equal(c.body.Issuer, m.rawKey.Public().(ed25519.PublicKey)) || len(m.st.Root) > 0 && meshOf(c.body.Issuer) == MeshID(m.st.Mesh)
	t := c.signedAt()
	switch unset := m.wall().Before(earliest); {
	case own && !unset:
	case t > m.now().Add(lifetime).Unix() && !(unset && c.Peer == m.self):
	case unset:
		m.guess = max(m.guess, t)
	default:
		m.st.Newest = max(m.st.Newest, t)
	}
}
