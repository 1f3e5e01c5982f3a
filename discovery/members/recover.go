package members

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
)

// RecoveryTold says that a person was shown the recovery code: it is not to be had again.
func (m *Membership) RecoveryTold() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.st.Untold {
		return nil
	}
	m.st.Untold = false
	return m.saveState()
}

// Recover makes this node the holder of the root key of the mesh that the recovery code is of, and an admin in it. It leaves a mesh
// in which it is alone; one with others has to be left before (ErrLeaveFirst).
func (m *Membership) Recover(code string) error {
	seed, err := parseRecoveryCode(code)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.inMesh
	root := ed25519.NewKeyFromSeed(seed)
	mesh := meshOf(root.Public().(ed25519.PublicKey))
	same := mesh == MeshID(m.st.Mesh)
	switch {
	case same && m.void != nil:
		return revokedError{m.void}
	case !same && !m.alone():
		return ErrLeaveFirst
	case !same:
		m.inMesh = elsewhere(state{Mesh: mesh[:], Newest: old.st.Newest})
	}
	m.st.Root, m.st.Untold = seed, false // who has typed the code knows it
	if err := m.certifySelf(); err != nil {
		m.inMesh = old
		return err
	}
	m.changed()
	if !same {
		return m.forgetMesh()
	}
	return nil
}

// recoveryCode is the root seed for people: base32 in groups of five, with a checksum.
func recoveryCode(seed []byte) string {
	sum := sha256.Sum256(append([]byte("meshnode recovery code 1\x00"), seed...))
	return inFives(b32.EncodeToString(append(slices.Clone(seed), sum[:3]...)))
}

func parseRecoveryCode(code string) ([]byte, error) {
	s := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\n' || r == '\r' || r == '\t' {
			return -1
		}
		return r
	}, code))
	b, err := b32.DecodeString(s)
	if err != nil || len(b) != ed25519.SeedSize+3 || recoveryCode(b[:ed25519.SeedSize]) != inFives(s) {
		return nil, errors.New("this is no recovery code, or it has a typing error: want 56 letters and digits in groups of five")
	}
	return b[:ed25519.SeedSize], nil
}

func inFives(s string) string {
	var groups []string
	for i := 0; i < len(s); i += 5 {
		groups = append(groups, s[i:min(i+5, len(s))])
	}
	return strings.Join(groups, "-")
}
