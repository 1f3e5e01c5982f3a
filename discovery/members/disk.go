package members

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

func (m *Membership) path(name string) string { return filepath.Join(m.dir, folder, name) }

func (m *Membership) loadKey() error {
	path := filepath.Join(m.dir, keyFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(m.path(stateFile)); err == nil {
			return fmt.Errorf("the key of this node is missing: put %s back, or remove %s to start as a new node", path, filepath.Join(m.dir, folder))
		}
		_, m.rawKey, err = ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(m.rawKey)
		if err != nil {
			return err
		}
		b = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := m.writeFile(path, b); err != nil {
			return fmt.Errorf("write the node's key: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("read the node's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("%s is no key: put the right file back, or remove it and %s to start as a new node", path, filepath.Join(m.dir, folder))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s is no key: %w", path, err)
	}
	var ok bool
	if m.rawKey, ok = k.(ed25519.PrivateKey); !ok {
		return fmt.Errorf("%s is a %T: want an Ed25519 key", path, k)
	}
	if m.key, err = crypto.UnmarshalEd25519PrivateKey(m.rawKey); err != nil {
		return err
	}
	m.self, err = peer.IDFromPrivateKey(m.key)
	return err
}

func (m *Membership) load() error {
	b, err := os.ReadFile(m.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = m.makeMesh()
		m.opened.RecoveryCode = recoveryCode(m.st.Root)
		return err
	}
	if err != nil {
		return fmt.Errorf("read the membership: %w", err)
	}
	chain := &protocol.Chain{}
	if err := json.Unmarshal(b, &m.st); err != nil {
		return fmt.Errorf("%s is damaged (%v): restore it, or remove %s to start with a mesh of its own", m.path(stateFile), err, filepath.Join(m.dir, folder))
	}
	if len(m.st.Mesh) != 32 || (len(m.st.Root) != 0 && len(m.st.Root) != ed25519.SeedSize) || proto.Unmarshal(m.st.Chain, chain) != nil {
		return fmt.Errorf("%s is damaged: restore it, or remove %s to start with a mesh of its own", m.path(stateFile), filepath.Join(m.dir, folder))
	}
	if m.st.Untold && len(m.st.Root) > 0 {
		m.opened.RecoveryCode = recoveryCode(m.st.Root)
	}
	if err := m.loadRevocations(); err != nil {
		return err
	}
	if err := m.loadPolicy(); err != nil {
		return err
	}
	c, err := verify(chain, MeshID(m.st.Mesh), m.now())
	switch {
	case err == nil, errors.Is(err, ErrExpired):
		m.own = c
	default:
		return fmt.Errorf("%s: %w", m.path(stateFile), err)
	}
	if c.Peer != m.self {
		return fmt.Errorf("%s belongs to the key of %s, not to %s: put the right key back, or remove %s to start with a mesh of its own",
			m.path(stateFile), c.Peer, filepath.Join(m.dir, keyFile), filepath.Join(m.dir, folder))
	}
	if len(m.st.Root) > 0 && (err != nil || m.own.NotAfter.Sub(m.now()) < renewBefore) {
		if err := m.certifySelf(); err != nil {
			return err
		}
	}
	m.see(m.own)
	m.judgeOwn()
	if err := m.loadMet(); err != nil {
		return err
	}
	m.opened.Notices = append(m.opened.Notices, m.Trouble()...)
	return nil
}

// loadMet reads the certificates of members met. The file is a cache: what is damaged in it is left out, and members
// are met again.
func (m *Membership) loadMet() error {
	b, err := os.ReadFile(m.path(metFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the certificates of members: %w", err)
	}
	var chains [][]byte
	if err := json.Unmarshal(b, &chains); err != nil {
		m.log.Warn("the certificates of members met are unreadable and forgotten", "file", m.path(metFile), "err", err)
		return nil
	}
	for _, raw := range chains {
		chain := &protocol.Chain{}
		if proto.Unmarshal(raw, chain) != nil {
			continue
		}
		if c, err := verify(chain, MeshID(m.st.Mesh), m.now()); err == nil || errors.Is(err, ErrExpired) {
			m.add(c, true)
		}
	}
	return nil
}

func (m *Membership) saveState() error {
	b, err := json.MarshalIndent(&m.st, "", "  ")
	if err != nil {
		return err
	}
	if err := m.writeFile(m.path(stateFile), b); err != nil {
		return fmt.Errorf("write the membership: %w", err)
	}
	return nil
}

func (m *Membership) saveMet() error {
	chains := make([][]byte, 0, len(m.met))
	for _, c := range m.met {
		if c.Brief {
			continue // it does not outlive its program, and shows its certificate whenever it comes
		}
		raw, err := proto.Marshal(c.chain)
		if err != nil {
			return err
		}
		chains = append(chains, raw)
	}
	b, err := json.Marshal(chains)
	if err != nil {
		return err
	}
	if err := m.writeFile(m.path(metFile), b); err != nil {
		return fmt.Errorf("write the certificates of members: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole, so that a crash leaves the old one or the new one; it is on the disk when
// writeFile returns, unless it is volatile. Mode 0600.
func (m *Membership) writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if m.sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !m.sync {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename last. Windows cannot sync a directory, and needs not.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
