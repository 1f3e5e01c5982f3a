package discovery

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const bookFile = "addresses.json"

// book is the address book: where members were last seen, by an authenticated connection to that address or by their
// own word on one. It is a cache; a lost one costs time only. It belongs to Run's goroutine.
type book struct {
	path  string
	peers map[peer.ID]*entry
	dirty bool
}

type entry struct {
	Addrs    []string  `json:"addresses"`
	LastSeen time.Time `json:"last_seen"`
	Relays   bool      `json:"relays,omitempty"` // it did when it was connected last
	Name     string    `json:"name,omitempty"`   // what it said last that it is called: its certificate has the name that it joined with
}

// openBook reads the book; an unreadable one is an empty one.
func openBook(dir string) (*book, error) {
	b := &book{path: filepath.Join(dir, bookFile), peers: map[peer.ID]*entry{}}
	raw, err := os.ReadFile(b.path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return b, err
	}
	var peers map[string]*entry
	if err := json.Unmarshal(raw, &peers); err != nil {
		return b, err
	}
	for s, e := range peers {
		if p, err := peer.Decode(s); err == nil && e != nil {
			b.peers[p] = e
		}
	}
	return b, nil
}

// put replaces a peer's addresses: the one of the connection, then those it says it listens on. It reports whether they
// are others than before.
func (b *book) put(p peer.ID, addrs []ma.Multiaddr, now time.Time) (changed bool) {
	e := &entry{LastSeen: now}
	if old := b.peers[p]; old != nil {
		e.Relays, e.Name = old.Relays, old.Name
	}
	for _, a := range best(addrs) {
		e.Addrs = append(e.Addrs, a.String())
	}
	old := b.peers[p]
	b.peers[p] = e
	b.dirty = true
	return old == nil || !slices.Equal(slices.Sorted(slices.Values(old.Addrs)), slices.Sorted(slices.Values(e.Addrs)))
}

func (b *book) seen(p peer.ID, now time.Time) {
	if e := b.peers[p]; e != nil {
		e.LastSeen = now
		b.dirty = true
	}
}

// relays notes whether a peer relays, and reports whether that is new.
func (b *book) relays(p peer.ID, it bool) bool {
	e := b.peers[p]
	if e == nil || e.Relays == it {
		return false
	}
	e.Relays, b.dirty = it, true
	return true
}

// named notes what a peer says that it is called, and reports whether that is new.
func (b *book) named(p peer.ID, name string) bool {
	e := b.peers[p]
	if e == nil {
		e = &entry{LastSeen: time.Now()}
		b.peers[p] = e
	}
	if e.Name == name {
		return false
	}
	e.Name, b.dirty = name, true
	return true
}

func (b *book) addrs(p peer.ID) []ma.Multiaddr {
	e := b.peers[p]
	if e == nil {
		return nil
	}
	var out []ma.Multiaddr
	for _, s := range e.Addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			out = append(out, a)
		}
	}
	return best(out)
}

// save writes the book if it has changed, leaving out peers for whom keep is false.
func (b *book) save(keep func(peer.ID) bool) error {
	if !b.dirty {
		return nil
	}
	peers := map[string]*entry{}
	for p, e := range b.peers {
		if !keep(p) {
			delete(b.peers, p)
			continue
		}
		peers[p.String()] = e
	}
	raw, err := json.MarshalIndent(peers, "", "  ")
	if err != nil {
		return err
	}
	b.dirty = false
	return replaceFile(b.path, raw)
}

// replaceFile writes a file as a whole, 0600. It is not synced: what it is used for can be found again.
func replaceFile(path string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// bookSave is how soon after a change the address book is written, and how long after that at the earliest the next time.
const bookSave = time.Second

// save has the address book written soon.
func (d *Discovery) save() {
	if d.saveAt.IsZero() {
		d.saveAt = time.Now().Add(bookSave / 4)
		if early := d.saved.Add(bookSave); d.saveAt.Before(early) {
			d.saveAt = early
		}
	}
}

// saveDue writes the address book if that is due, and returns when it is.
func (d *Discovery) saveDue() time.Duration {
	if d.saveAt.IsZero() {
		return time.Hour
	}
	if left := time.Until(d.saveAt); left > 0 {
		return left
	}
	d.saveBook()
	return time.Hour
}

func (d *Discovery) saveBook() {
	err := d.book.save(func(p peer.ID) bool { return d.peers[p] != nil })
	if err != nil {
		d.log.Warn("the address book cannot be written", "err", err)
	}
	d.saveAt, d.saved = time.Time{}, time.Now()
}
