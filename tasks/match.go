package tasks

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"meshnode/protocol"
)

// Facts are what a node says of itself, once for each process: what a job can ask for.
type Facts struct {
	Name, OS, Arch string   // OS and Arch as Go calls them
	Labels         []string // "key=value" or "key", as CheckLabel wants them
	CPUs           uint32   // logical processors; 0: not known
	Memory         uint64   // bytes that tasks may have, all slots together; 0: not known
}

func (f *Facts) equal(g *Facts) bool {
	return f.Name == g.Name && f.OS == g.OS && f.Arch == g.Arch && f.CPUs == g.CPUs && f.Memory == g.Memory && slices.Equal(f.Labels, g.Labels)
}

// On is an expression over Facts, as of "submit --on": conditions with a comma between them, all of which must hold.
//
//	os=linux  arch=arm64         also macos, x86_64 and aarch64; != for any other
//	cpus>=8  memory>=4G          = != > >= < <=; memory is what tasks may have there, in all
//	python>=3.11                 a runtime's version; or the value of a label that looks like one
//	room=4  name=lab-*           a label's value, a node's name; * stands for any text
//	gpu  !gpu                    a label, runtime, name or peer ID that is there, or is not
//	os=linux|macos  gpu|tpu      any of these; after !=: none of these
//
// Capitals make no difference. The zero On holds everywhere.
type On struct {
	text  string
	conds []condition
	bad   error // of a journal whose expression this version cannot read: holds nowhere
}

// condition is one condition of an On.
type condition struct {
	text   string
	key    string   // "": the values are words of which one is to be there
	op     string   // = != > >= < <=
	values []string // in small letters; more than one for = and != only
	number uint64   // of cpus and memory
}

const (
	maxConditions = 32 // of an expression
	maxValues     = 32 // of a condition

	// Bounds of a label, in bytes.
	maxLabelKey, maxLabelValue = 32, 64
)

// aliases are other names of Go's names of systems and processors; each of these stands for itself, too.
var aliases = map[string]map[string]string{
	"os": {
		"linux": "", "darwin": "", "windows": "", "freebsd": "", "openbsd": "", "netbsd": "", "android": "",
		"macos": "darwin", "mac": "darwin", "osx": "darwin",
	},
	"arch": {
		"amd64": "", "arm64": "", "arm": "", "386": "", "riscv64": "", "ppc64le": "", "s390x": "", "loong64": "",
		"x86_64": "amd64", "x86-64": "amd64", "x64": "amd64", "aarch64": "arm64", "i386": "386", "x86": "386",
	},
}

func (o *On) String() string {
	if o == nil {
		return ""
	}
	return o.text
}

// ParseOn reads an expression; "" holds everywhere. The error is one line that says what is wrong and what would be right.
func ParseOn(text string) (*On, error) {
	o := &On{text: text}
	if text == "" {
		return o, nil
	}
	if len(text) > protocol.MaxName || !utf8.ValidString(text) {
		return nil, fmt.Errorf("want UTF-8 of at most %d bytes", protocol.MaxName)
	}
	for _, part := range strings.Split(text, ",") {
		c, err := parseCondition(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if o.conds = append(o.conds, c); len(o.conds) > maxConditions {
			return nil, fmt.Errorf("more than %d conditions", maxConditions)
		}
	}
	return o, nil
}

func parseCondition(text string) (condition, error) {
	c := condition{text: text}
	bad := func(format string, args ...any) (condition, error) {
		return c, fmt.Errorf("%q: %s", text, fmt.Sprintf(format, args...))
	}
	if text == "" {
		return c, fmt.Errorf("a condition is empty: write one on each side of a comma, as in os=linux,cpus>=8")
	}
	rest := text
	if i := strings.IndexAny(text, "=<>!"); i > 0 {
		c.key, rest = strings.ToLower(strings.TrimSpace(text[:i])), text[i:]
		for _, op := range []string{">=", "<=", "!=", "==", "=", ">", "<"} {
			if after, ok := strings.CutPrefix(rest, op); ok {
				c.op, rest = strings.Replace(op, "==", "=", 1), after
				break
			}
		}
		if !isKey(c.key) {
			return bad("%q cannot be the name of a label: want letters, digits, and . _ - after the first letter", c.key)
		}
		if c.op == "" {
			return bad("want one of = != > >= < <= after %s", c.key)
		}
	} else if i == 0 && text[0] == '!' && !strings.HasPrefix(text, "!=") {
		c.op, rest = "!=", text[1:]
	} else if i == 0 {
		return bad("write what is compared before the %c, as in cpus>=8 or os!=windows", text[0])
	} else {
		c.op = "="
	}
	for _, v := range strings.Split(rest, "|") {
		v = strings.ToLower(strings.TrimSpace(v))
		switch {
		case v == "" && c.key == "":
			return bad("a word is missing")
		case v == "":
			return bad("a value is missing after %s", c.op)
		case c.op == "=" && (v[0] == '>' || v[0] == '<'):
			return bad("write %c= rather than =%c", v[0], v[0])
		case strings.ContainsAny(v, "=<>!"):
			return bad("| goes between values of one condition, as in os=linux|macos; write %q as a condition of its own, after a comma", v)
		case strings.IndexFunc(v, func(r rune) bool {
			return unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune("\"'`()&", r)
		}) >= 0:
			return bad("%q cannot be a value: conditions have no blanks, quotes or brackets, and a comma between them", v)
		}
		if c.values = append(c.values, v); len(c.values) > maxValues {
			return bad("more than %d values", maxValues)
		}
	}
	if len(c.values) > 1 && c.op != "=" && c.op != "!=" {
		return bad("%s compares with one value", c.op)
	}
	return c.check(bad)
}

// check refuses conditions that can hold nowhere, and brings values to the form that holds compares.
func (c condition) check(bad func(string, ...any) (condition, error)) (condition, error) {
	orders := c.op != "=" && c.op != "!="
	switch c.key {
	case "":
		for _, v := range c.values {
			for _, k := range []string{"os", "arch"} {
				if _, known := aliases[k][v]; known {
					return bad("write %s%s%s", k, c.op, v)
				}
			}
			if v == "cpus" || v == "memory" || v == "name" || v == "id" || v == "os" || v == "arch" || v == "runtime" {
				return bad("every node has that: compare it with something, as in cpus>=8 or os=linux")
			}
		}
	case "os", "arch":
		if orders {
			return bad("%s is compared by = and !=", c.key)
		}
		for i, v := range c.values {
			name, known := aliases[c.key][v]
			if !known {
				return bad("no %s %q is known; known are %s", c.key, v, strings.Join(sortedKeys(aliases[c.key]), ", "))
			}
			c.values[i] = cmp.Or(name, v)
		}
	case "cpus":
		n, err := strconv.ParseUint(c.values[0], 10, 32)
		if err != nil || len(c.values) > 1 {
			return bad("want a whole number of processors after cpus%s", c.op)
		}
		c.number = n
	case "memory":
		n, ok := parseSize(c.values[0])
		if !ok || len(c.values) > 1 {
			return bad("want a size after memory%s, like 512M or 4G", c.op)
		}
		c.number = n
	case "name", "id", "runtime":
		if orders {
			return bad("%s is compared by = and !=", c.key)
		}
	default:
		if orders && versionOf(c.values[0]) == nil {
			return bad("want a number or a version after %s, like 4 or 3.11", c.op)
		}
	}
	return c, nil
}

// parseSize reads bytes like 1024, 512M, 1.5G or 2GiB: units are powers of 1024.
func parseSize(s string) (uint64, bool) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "b"), "i")
	unit := uint64(1)
	if i := strings.IndexAny(s, "kmgt"); i >= 0 && i == len(s)-1 {
		unit = 1 << (10 * (1 + strings.IndexByte("kmgt", s[i])))
		s = s[:i]
	}
	whole, part, _ := strings.Cut(s, ".")
	n, err := strconv.ParseUint(whole, 10, 20) // a million units
	if err != nil || len(part) > 3 || strings.HasSuffix(s, ".") {
		return 0, false
	}
	n *= unit
	if part != "" {
		p, err := strconv.ParseUint((part + "00")[:3], 10, 16)
		if err != nil {
			return 0, false
		}
		n += p * unit / 1000
	}
	return n, true
}

// sizeText is a size for people, to three digits or so.
func sizeText(n uint64) string {
	const units = "BKMGT"
	u, scale := 0, uint64(1)
	for u < len(units)-1 && n/scale >= 1024 {
		u, scale = u+1, scale*1024
	}
	whole, tenth := n/scale, n%scale*10/scale
	if u == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	if whole >= 100 || tenth == 0 {
		return fmt.Sprintf("%d %ciB", whole, units[u])
	}
	return fmt.Sprintf("%d.%d %ciB", whole, tenth, units[u])
}

// versionOf is the parts of a dotted number; nil: it is none.
func versionOf(s string) []uint64 {
	var v []uint64
	for _, p := range strings.Split(s, ".") {
		n, err := strconv.ParseUint(p, 10, 64)
		if err != nil {
			return nil
		}
		v = append(v, n)
	}
	return v
}

func isKey(k string) bool {
	return k != "" && len(k) <= maxLabelKey && (k[0] >= 'a' && k[0] <= 'z') && strings.IndexFunc(k, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}) < 0
}

// CheckLabels says what is wrong with the labels of a node, "key=value" or "key" each, or nil. An expression could not ask
// for a label that it refuses.
func CheckLabels(labels []string) error {
	if len(labels) > protocol.MaxLabels {
		return fmt.Errorf("%d labels: at most %d", len(labels), protocol.MaxLabels)
	}
	seen := map[string]bool{}
	for _, l := range labels {
		k, v, has := strings.Cut(l, "=")
		k = strings.ToLower(k)
		switch {
		case !isKey(k):
			return fmt.Errorf("label %q: want key=value, the key of up to %d letters, digits and . _ - after a letter", l, maxLabelKey)
		case has && v == "":
			return fmt.Errorf("label %q: its value is empty; leave the = away, or give one", l)
		case len(v) > maxLabelValue || strings.IndexFunc(v, func(r rune) bool {
			return unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune("=<>!|,*\"'`()&", r)
		}) >= 0:
			return fmt.Errorf("label %q: want a value of up to %d printable characters without blanks, quotes, brackets and = < > ! | , * &", l, maxLabelValue)
		case slices.Contains([]string{"os", "arch", "cpus", "memory", "name", "id", "runtime"}, k):
			return fmt.Errorf("label %q: the node itself says what its %s is; choose another key", l, k)
		case seen[k]:
			return fmt.Errorf("label %s is there twice", k)
		}
		seen[k] = true
	}
	return nil
}

// fit is why p is not where the client of j wants it to run, or None. It never changes in the life of p's process.
func (p *peer) fit(j *job) Code {
	at := j.spec.Placement
	switch {
	case at.LocalOnly && !p.self:
		return OnlyHere
	case at.RemoteOnly && p.self:
		return OnlyElsewhere
	case slices.Contains(at.Not, string(p.id)):
		return Excluded
	}
	if ok, _ := j.on.Match(p.id, &p.Facts, p.runtimes); !ok {
		return NoMatch
	}
	return None
}

// Match says whether the expression holds for a node, and if not, why: a phrase that continues its name.
func (o *On) Match(id protocol.NodeID, f *Facts, runtimes []string) (bool, string) {
	if o == nil {
		return true, ""
	}
	if o.bad != nil {
		return false, fmt.Sprintf("cannot tell: --on %s: %v", o.text, o.bad)
	}
	for i := range o.conds {
		if ok, has := o.conds[i].holds(id, f, runtimes); !ok {
			return false, has
		}
	}
	return true, ""
}

func (c *condition) holds(id protocol.NodeID, f *Facts, runtimes []string) (bool, string) {
	wants := ", and the job wants " + c.text
	among := func(has func(v string) bool) bool { return slices.ContainsFunc(c.values, has) == (c.op == "=") }
	switch c.key {
	case "":
		if among(func(v string) bool { return hasWord(v, id, f, runtimes) }) {
			return true, ""
		}
		if c.op == "!=" {
			return false, "has what the job does not want: " + c.text
		}
		return false, "has no label " + strings.Join(c.values, " or ")
	case "os", "arch":
		is := f.OS
		if c.key == "arch" {
			is = f.Arch
		}
		is = strings.ToLower(is)
		return among(func(v string) bool { return v == is }), "has " + c.key + " " + cmp.Or(is, "unknown") + wants
	case "cpus":
		if f.CPUs == 0 {
			return false, "does not say how many processors it has" + wants
		}
		return ordered(c.op, cmp.Compare(uint64(f.CPUs), c.number)), fmt.Sprintf("has cpus %d%s", f.CPUs, wants)
	case "memory":
		if f.Memory == 0 {
			return false, "does not say how much memory tasks may have" + wants
		}
		return ordered(c.op, cmp.Compare(f.Memory, c.number)), "has " + sizeText(f.Memory) + " of memory for tasks" + wants
	case "name":
		return among(func(v string) bool { return like(v, f.Name) }), "is not what the job wants: " + c.text
	case "id":
		return among(func(v string) bool { return isID(v, id) }), "is not what the job wants: " + c.text
	case "runtime":
		return among(func(v string) bool { return runs(runtimes, v) }), "runs " + cmp.Or(strings.Join(runtimes, ", "), "nothing") + wants
	}
	// A label, or the version of a runtime. != asks that nothing is there that is equal.
	found := ""
	some := false
	check := func(value string, version bool) {
		found = value
		if c.op == "=" || c.op == "!=" {
			some = some || slices.ContainsFunc(c.values, func(v string) bool {
				return like(v, value) || version && strings.HasPrefix(value, v+".")
			})
			return
		}
		if have, want := versionOf(value), versionOf(c.values[0]); have != nil {
			some = some || ordered(c.op, slices.Compare(have, want))
		}
	}
	for _, l := range f.Labels {
		if k, v, _ := strings.Cut(l, "="); strings.EqualFold(k, c.key) {
			check(v, false)
		}
	}
	for _, r := range runtimes {
		if v, ok := strings.CutPrefix(r, c.key); ok && v != "" && v[0] >= '0' && v[0] <= '9' {
			check(v, true)
		}
	}
	if c.op == "!=" {
		some = !some
	}
	if found == "" {
		return some, "has no label " + c.key + wants
	}
	return some, "has " + c.key + " " + found + wants
}

// ordered says whether a comparison with that outcome is what op asks for.
func ordered(op string, outcome int) bool {
	switch op {
	case "=":
		return outcome == 0
	case "!=":
		return outcome != 0
	case ">":
		return outcome > 0
	case ">=":
		return outcome >= 0
	case "<":
		return outcome < 0
	}
	return outcome <= 0
}

// hasWord says whether a node has a label or runtime of that name, or is called so.
func hasWord(w string, id protocol.NodeID, f *Facts, runtimes []string) bool {
	return like(w, f.Name) || isID(w, id) || runs(runtimes, w) || slices.ContainsFunc(f.Labels, func(l string) bool {
		k, _, _ := strings.Cut(l, "=")
		return like(w, k)
	})
}

// minID is how much of a peer ID names a peer: the first eight letters are those of all.
const minID = 12

// isID says whether a word is the ID of a peer, its first minID letters or more, or the short form that people see.
func isID(w string, id protocol.NodeID) bool {
	return strings.EqualFold(w, id.Short()) || len(w) >= min(minID, len(id)) && len(w) <= len(id) && strings.EqualFold(w, string(id[:len(w)]))
}

// like says whether text is what a pattern asks for: * is any text, capitals make no difference.
func like(pattern, text string) bool {
	text = strings.ToLower(text)
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return text == pattern
	}
	text, ok := strings.CutPrefix(text, first)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "*")
	for _, p := range parts[:len(parts)-1] {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		text = text[i+len(p):]
	}
	return strings.HasSuffix(text, parts[len(parts)-1])
}
