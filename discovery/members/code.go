package members

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/protocol"
)

const (
	// DefaultCodeExpiry of a short code: long enough to say it across a room, or over the telephone.
	DefaultCodeExpiry = 10 * time.Minute
	// maxCodeExpiry: a code is to be used while two people talk; what lies about for longer should be a ticket.
	maxCodeExpiry = 24 * time.Hour
	// wrongCodes end a code. Two words of 512 are 18 bits, so somebody who guesses has a chance of 5 in 262,144.
	wrongCodes = 5
	codeLength = 2
	// maxCodes open at once: a nameplate of two digits stays easy to find.
	maxCodes     = 20
	maxNameplate = 99
	// codeMemory is how long a code that has ended is remembered, to say what became of it, and to give a joiner who lost its
	// connection its certificate again.
	codeMemory = time.Hour
)

// code is a short one that this node gave out.
type code struct {
	ticket
	Nameplate uint32   `json:"nameplate"`
	Words     string   `json:"words"`
	Wrong     int      `json:"wrong,omitempty"`
	Joined    []Joiner `json:"joined,omitempty"`
	Withdrawn bool     `json:"withdrawn,omitempty"`
}

// Joiner is a machine that a code let in.
type Joiner struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

// CodeState says what became of a code.
type CodeState struct {
	Standing CodeStanding
	Uses     int      // how many machines may use it
	Joined   []Joiner // in the order in which they came
	Wrong    int      // wrong tries
	Expires  time.Time
}

// CodeStanding is where a code stands.
type CodeStanding string

// The standings.
const (
	CodeOpen    CodeStanding = "open"
	CodeUsed    CodeStanding = "used"    // as often as it may be
	CodeExpired CodeStanding = "expired" // or withdrawn
	CodeEnded   CodeStanding = "ended"   // by wrong tries
)

func (c *code) standing(now time.Time) CodeStanding {
	switch {
	case len(c.Bound) >= c.Uses:
		return CodeUsed
	case c.Wrong >= wrongCodes:
		return CodeEnded
	case c.Withdrawn || now.Unix() >= c.Expires:
		return CodeExpired
	}
	return CodeOpen
}

// ErrCode is wrapped by what JoinCode says of a text that is no code.
var ErrCode = errors.New("this is no code")

// ErrNoInviter says that nobody who gave out the code was found.
var ErrNoInviter = errors.New("nobody is found who gave out this code")

// InviteCode makes a short code, to be said to another person: "7-kitchen-sunset". It is good for DefaultCodeExpiry, at most a
// day, and ends with five wrong tries, of whoever makes them. This node must be running for a join to work.
func (m *Membership) InviteCode(o InviteOptions) (string, error) {
	o.Expires = cmp.Or(o.Expires, DefaultCodeExpiry)
	if o.Expires > maxCodeExpiry {
		return "", fmt.Errorf("a code is good for a day at most, not for %s: use a ticket", o.Expires)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.newTicket(o)
	if err != nil {
		return "", err
	}
	now := m.now()
	m.dropCodes(now)
	taken := map[uint32]bool{}
	for _, c := range m.st.Codes {
		taken[c.Nameplate] = true
	}
	if len(taken) >= maxCodes {
		return "", fmt.Errorf("%d codes are open or were until now: wait until some are forgotten, an hour after their end", len(taken))
	}
	c := &code{ticket: *t}
	for c.Nameplate == 0 || taken[c.Nameplate] {
		c.Nameplate = 1 + randomBelow(maxNameplate)
	}
	words := make([]string, codeLength)
	for i := range words {
		words[i] = codeWords[randomBelow(uint32(len(codeWords)))]
	}
	c.Words = strings.Join(words, "-")
	old := m.st.Codes
	m.st.Codes = append(slices.Clone(old), c)
	if err := m.saveState(); err != nil {
		m.st.Codes = old
		return "", err
	}
	m.changed()
	return formatCode(c.Nameplate, c.Words), nil
}

// randomBelow is uniform for n that divides 2³², and off by less than 2⁻²⁵ for others.
func randomBelow(n uint32) uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:]) % n
}

func formatCode(nameplate uint32, words string) string {
	return strconv.Itoa(int(nameplate)) + "-" + words
}

// dropCodes forgets codes that ended long ago. The caller holds mu.
func (m *Membership) dropCodes(now time.Time) {
	m.st.Codes = slices.DeleteFunc(m.st.Codes, func(c *code) bool {
		return c.standing(now) != CodeOpen && now.Unix() >= c.Expires+int64(codeMemory/time.Second)
	})
}

// CodeState says what became of a code of this node; false if it is not known, or no more.
func (m *Membership) CodeState(text string) (CodeState, bool) {
	nameplate, words, err := ParseCode(text)
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := m.codeOf(nameplate)
	if err != nil || c == nil || c.Words != words {
		return CodeState{}, false
	}
	return CodeState{
		Standing: c.standing(m.now()), Uses: c.Uses, Joined: slices.Clone(c.Joined), Wrong: c.Wrong, Expires: time.Unix(c.Expires, 0),
	}, true
}

// Withdraw ends a code of this node.
func (m *Membership) Withdraw(text string) error {
	nameplate, words, err := ParseCode(text)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.codeOf(nameplate); c != nil && c.Words == words && !c.Withdrawn {
		c.Withdrawn = true
		m.changed()
		return m.saveState()
	}
	return nil
}

// OpenCodes are the nameplates of the codes that can be used now.
func (m *Membership) OpenCodes() []uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var open []uint32
	now := m.now()
	for _, c := range m.st.Codes {
		if c.standing(now) == CodeOpen {
			open = append(open, c.Nameplate)
		}
	}
	return open
}

// codeOf is the code with a nameplate, whatever its standing; nil if there is none. The caller holds mu.
func (m *Membership) codeOf(nameplate uint32) *code {
	i := slices.IndexFunc(m.st.Codes, func(c *code) bool { return c.Nameplate == nameplate })
	if i < 0 {
		return nil
	}
	return m.st.Codes[i]
}

const codeShape = "a code is a number and two words, as in 7-kitchen-sunset"

// IsCode reports whether text begins as a code does, and not as a ticket; or with a word of one, because its number was left out.
func IsCode(text string) bool {
	text = strings.TrimSpace(text)
	if text == "" || len(text) >= 200 {
		return false
	}
	if text[0] >= '0' && text[0] <= '9' {
		return true
	}
	parts := codeParts(text)
	return len(parts) > 0 && codeWord(parts[0]) != ""
}

// codeParts are the number and the words of a code.
func codeParts(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return r == '-' || r == '_' || r == ',' || r == '.' || r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == '–' || r == '‑'
	})
}

// ParseCode reads a code as people write it: capitals, blanks instead of hyphens, the first four letters of a word and one slip of
// typing in each are put right, which is safe since no other word is as near. What cannot be put right is an error, and costs
// none of the code's tries.
func ParseCode(text string) (nameplate uint32, words string, err error) {
	if len(text) > 200 {
		return 0, "", fmt.Errorf("%w: %s", ErrCode, codeShape)
	}
	parts := codeParts(text)
	if len(parts) > 0 && codeWord(parts[0]) != "" {
		return 0, "", fmt.Errorf("%w: the number before the words is missing; %s", ErrCode, codeShape)
	}
	if len(parts) != codeLength+1 {
		return 0, "", fmt.Errorf("%w: %s", ErrCode, codeShape)
	}
	n, err := strconv.ParseUint(parts[0], 10, 16)
	if err != nil || n == 0 || n > maxNameplate {
		return 0, "", fmt.Errorf("%w: it begins with a number from 1 to %d", ErrCode, maxNameplate)
	}
	for i, p := range parts[1:] {
		w := codeWord(p)
		if w == "" {
			return 0, "", fmt.Errorf("%w: %q is no word of a code, nor near to one: look again", ErrCode, plain(p))
		}
		parts[1+i] = w
	}
	return uint32(n), strings.Join(parts[1:], "-"), nil
}

// codeWord is the word that is meant, or "".
func codeWord(s string) string {
	if _, ok := slices.BinarySearch(codeWords, s); ok {
		return s
	}
	var found []string
	if len(s) >= 4 {
		for _, w := range codeWords {
			if strings.HasPrefix(w, s) || oneSlip(s, w) {
				found = append(found, w)
			}
		}
	}
	if len(found) != 1 {
		return ""
	}
	return found[0]
}

// CompleteCode are the codes that text may be the beginning of, for a shell: at most 50, none if the number is not there yet.
func CompleteCode(text string) []string {
	cut := strings.LastIndexByte(text, '-')
	if cut <= 0 || strings.Count(text, "-") > codeLength {
		return nil
	}
	var found []string
	for _, w := range codeWords {
		if strings.HasPrefix(w, strings.ToLower(text[cut+1:])) {
			found = append(found, text[:cut+1]+w)
		}
	}
	if len(found) > 50 {
		return nil
	}
	return found
}

// oneSlip reports whether a is b with one letter changed, left out, put in, or two neighbours swapped.
func oneSlip(a, b string) bool {
	if len(a) > len(b)+1 || len(b) > len(a)+1 {
		return false
	}
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	ra, rb := a[i:], b[i:]
	switch {
	case len(ra) == len(rb):
		if len(ra) == 0 || ra[1:] == rb[1:] {
			return true
		}
		return len(ra) > 1 && ra[0] == rb[1] && ra[1] == rb[0] && ra[2:] == rb[2:]
	case len(ra) > len(rb):
		return ra[1:] == rb
	}
	return ra == rb[1:]
}

// Place is where somebody may be found who gave out a code, or knows a secret.
type Place struct {
	Peer    peer.ID // empty: whoever is there
	Network string  // for package net
	Host    string
}

// CodeOptions of JoinCode.
type CodeOptions struct {
	// At are places to ask. If there are none, Find is asked.
	At []Place
	// Find looks in the local network for those who have a code with that nameplate open. It returns what it has found when ctx
	// ends, or earlier.
	Find func(ctx context.Context, nameplate uint32) []Place
}

// maxCodeAsked times a code is tried: each time the other side may be an impostor, who has one guess, whatever it answers then.
const maxCodeAsked = wrongCodes

// JoinCode makes this node a member of the mesh whose member gave out the code, in place of the one that it made for itself on
// its first start. Neither side learns anything of the other's code but whether it is the same.
func (m *Membership) JoinCode(ctx context.Context, text string, o CodeOptions) (*Paired, error) {
	nameplate, words, err := ParseCode(text)
	if err != nil {
		return nil, err
	}
	if !m.Alone() {
		return nil, ErrLeaveFirst
	}
	places := o.At
	if len(places) == 0 && o.Find != nil {
		places = o.Find(ctx, nameplate)
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("%w: no machine in the local network has a code with the number %d open. Is it still open there (meshnode invite --code), and this machine in the same network? If so, name the other machine: meshnode join CODE --peer HOST:PORT", ErrNoInviter, nameplate)
	}
	answered := func(err error) bool {
		var refused *Refused
		return errors.As(err, &refused) || errors.Is(err, ErrWrongSecret)
	}
	var errs []error
	asked := map[peer.ID]bool{}
	guesses := 0
	for _, at := range places {
		if guesses >= maxCodeAsked {
			break
		}
		if asked[at.Peer] && at.Peer != "" {
			continue
		}
		p, err := m.pairBy(ctx, at, nameplate, words, PairOptions{})
		if err == nil {
			return p, nil
		}
		if answered(err) || errors.Is(err, errBrokeOff) {
			guesses++
		}
		if answered(err) {
			asked[at.Peer] = true // by another address of the same it would cost another try
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	// The word of somebody who answered counts for more than an address where nobody did.
	for _, says := range []func(error) bool{answered, func(err error) bool { return errors.Is(err, errBrokeOff) }} {
		if i := slices.IndexFunc(errs, says); i >= 0 {
			return nil, errs[i]
		}
	}
	return nil, errs[0]
}

// redeemCode answers a joiner who has proven the code, if it is still good: the certificate is on disk, bound to its key, before it
// leaves. The caller holds mu.
func (m *Membership) redeemCode(c *code, joiner peer.ID, name string) (*protocol.AdmissionReply, error) {
	key, err := keyOf(joiner)
	if err != nil {
		return nil, err
	}
	if err := m.revokedKey(key); err != nil {
		return nil, err
	}
	if chain := m.boundTo(&c.ticket, key); chain != nil {
		return &protocol.AdmissionReply{Chain: m.own.chain, Issued: chain}, nil
	}
	if c.standing(m.now()) != CodeOpen {
		return nil, ErrWrongSecret
	}
	c.Joined = append(c.Joined, Joiner{Peer: joiner.String(), Name: name})
	chain, err := m.admit(&c.ticket, key, name)
	if err != nil {
		c.Joined = c.Joined[:len(c.Joined)-1]
		return nil, err
	}
	m.changed()
	return &protocol.AdmissionReply{Chain: m.own.chain, Issued: chain}, nil
}

// multiaddrs reads addresses with /p2p/ in them, as PairVerdict and PairGift have them.
func multiaddrs(raw [][]byte) []peer.AddrInfo {
	var all []ma.Multiaddr
	for _, b := range raw[:min(len(raw), protocol.MaxMemberAddresses)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			if t, id := peer.SplitAddr(a); id != "" && Dialable(t) {
				all = append(all, a)
			}
		}
	}
	infos, err := peer.AddrInfosFromP2pAddrs(all...)
	if err != nil {
		return nil
	}
	return infos
}
