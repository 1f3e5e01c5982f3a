package testnet

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "meshnode"

// room is one package of ours: what it may import, test files apart. A new package is a new line in the
// table below, a new import a new word, and both are a thought in review. docs/architecture.md says why.
type room struct {
	ours   string // packages of this module that it may import, without "meshnode/"; "…" at the end: and below
	others string // modules of others (or folders in them) that it may import; their packages come with them
	pure   bool   // no clock, no randomness but its own, no goroutine, no lock, no file, no socket
}

var rooms = map[string]room{
	"protocol": {others: "google.golang.org/protobuf"},

	"tasks":         {ours: "protocol", others: "google.golang.org/protobuf/proto", pure: true},
	"tasks/journal": {ours: "protocol tasks", others: "github.com/cockroachdb/pebble/v2 google.golang.org/protobuf"},
	"tasks/blob":    {ours: "protocol", others: "lukechampine.com/blake3 golang.org/x/sys"},
	"tasks/executor": {
		ours:   "protocol tasks",
		others: "golang.org/x/sys github.com/shirou/gopsutil/v4 google.golang.org/protobuf",
	},
	"tasks/executor/runtimetest": {ours: "protocol tasks tasks/executor", others: "github.com/shirou/gopsutil/v4"},
	"tasks/executor/wasm": {
		ours:   "protocol tasks tasks/executor",
		others: "github.com/tetratelabs/wazero golang.org/x/sys github.com/gofrs/flock",
	},

	"tasks/executor/python": {ours: "protocol tasks tasks/executor python"},

	"discovery": {
		ours:   "protocol discovery/members",
		others: "github.com/libp2p/go-libp2p github.com/libp2p/go-libp2p-kad-dht github.com/miekg/dns github.com/multiformats/go-multiaddr golang.org/x/net golang.org/x/sys google.golang.org/protobuf",
	},
	"discovery/paced": {
		others: "github.com/libp2p/go-libp2p github.com/libp2p/go-yamux/v5", // yamux: its pings say how much waits
	},
	"discovery/members": {
		ours: "protocol discovery/paced",
		others: "github.com/libp2p/go-libp2p github.com/libp2p/go-yamux/v5 github.com/multiformats/go-multiaddr github.com/multiformats/go-multistream " +
			"google.golang.org/protobuf github.com/shirou/gopsutil/v4 filippo.io/cpace golang.org/x/sys go.uber.org/fx", // fx: libp2p takes options of its transports through it
	},

	"node": {
		ours: "protocol tasks tasks/journal tasks/blob tasks/executor discovery… node/doctor",
		others: "github.com/libp2p/go-libp2p github.com/multiformats/go-multiaddr google.golang.org/protobuf " +
			"github.com/godbus/dbus/v5 github.com/gofrs/flock github.com/shirou/gopsutil/v4 golang.org/x/sys golang.org/x/sync",
	},
	"node/doctor":  {others: "golang.org/x/net golang.org/x/sys github.com/shirou/gopsutil/v4"},
	"node/control": {ours: "protocol tasks node node/doctor", others: "golang.org/x/sys golang.org/x/sync github.com/gofrs/flock"},

	"python": {},

	"cmd/meshnode": {
		ours: "protocol tasks… discovery… node… examples python",
		others: "github.com/spf13/cobra github.com/spf13/pflag github.com/adrg/xdg github.com/mdp/qrterminal/v3 " +
			"github.com/schollz/progressbar/v3 github.com/shirou/gopsutil/v4 golang.org/x/sys golang.org/x/term golang.org/x/sync",
	},

	"testnet":         {ours: "protocol node… testnet…", others: "golang.org/x/sys"},
	"testnet/lab":     {others: "golang.org/x/sys"},
	"testnet/bench":   {ours: "protocol node… testnet", others: "github.com/shirou/gopsutil/v4"},
	"testnet/sim":     {ours: "protocol tasks", others: "google.golang.org/protobuf"},
	"testnet/sim/cmd": {ours: "protocol tasks testnet/sim"},
}

// owners names the only rooms that may import a module, whatever the table says: its types must not spread.
var owners = map[string]string{
	"github.com/libp2p":               "node discovery…",
	"github.com/multiformats":         "node discovery…",
	"github.com/tetratelabs/wazero":   "tasks/executor/wasm",
	"github.com/cockroachdb/pebble":   "tasks/journal",
	"github.com/spf13":                "cmd…",
	"lukechampine.com/blake3":         "tasks/blob tasks/executor/wasm cmd…",
	"meshnode/node/control":           "cmd… testnet…",
	"meshnode/tasks/executor/wasm":    "cmd…",
	"meshnode/tasks/executor/python":  "cmd…",
	"meshnode/tasks/executor/command": "cmd…",
}

// effects are the standard packages through which a package stops being a function of its input.
var effects = []string{
	"crypto/rand", "io/ioutil", "log", "log/slog", "math/rand", "net", "os", "plugin", "runtime", "sync", "syscall", "testing", "unsafe",
}

// pureNames are what a pure package may use of two packages of which it must not use the rest: random sources of
// its own, but not the global one; durations, but no clock.
var pureNames = map[string][]string{
	"math/rand/v2": {"ChaCha8", "New", "NewChaCha8", "NewPCG", "NewZipf", "PCG", "Rand", "Source", "Zipf"},
	"time":         {"Duration", "Hour", "Microsecond", "Millisecond", "Minute", "Nanosecond", "Second"},
}

func TestArchitecture(t *testing.T) {
	t.Parallel()
	faults, seen, err := inspect(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
	for _, want := range []string{"protocol", "tasks"} { // inspect found the tree
		if !slices.Contains(seen, want) {
			t.Errorf("no package %s among %v", want, seen)
		}
	}
}

// inspect reads all packages of the module in fsys, for every system and build tag, and says what is against
// the table.
func inspect(fsys fs.FS) (faults, seen []string, err error) {
	packages := map[string][]*ast.File{}
	files := token.NewFileSet()
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			// Programs in examples are what users write, built for wasm; a folder with a go.mod is another module.
			if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); name == "examples" || name != "." && err == nil {
				return fs.SkipDir
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(files, name, src, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		if !onlyDeps(f) {
			packages[path.Dir(name)] = append(packages[path.Dir(name)], f)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	seen = slices.Sorted(maps.Keys(packages))
	for _, p := range seen {
		r, ok := rooms[p]
		if !ok {
			faults = append(faults, fmt.Sprintf("package %s has no line in the table of testnet/arch_test.go", p))
			continue
		}
		for _, f := range packages[p] {
			at := func(n ast.Node) string { return files.Position(n.Pos()).String() }
			for _, s := range f.Imports {
				imported, _ := strconv.Unquote(s.Path.Value)
				if why := r.refuses(p, imported); why != "" {
					faults = append(faults, fmt.Sprintf("%s: %s must not import %s: %s", at(s), p, imported, why))
				}
			}
			if r.pure {
				for _, x := range impure(f) {
					faults = append(faults, fmt.Sprintf("%s: %s is pure: %s", at(x.node), p, x.what))
				}
			}
		}
	}
	return faults, seen, nil
}

// onlyDeps reports whether f is only there to hold module requirements.
func onlyDeps(f *ast.File) bool {
	for _, g := range f.Comments {
		for _, c := range g.List {
			if x, err := constraint.Parse(c.Text); err == nil && c.Pos() < f.Package {
				return !x.Eval(func(tag string) bool { return tag != "deps" })
			}
		}
	}
	return false
}

// refuses says why package p may not import imported, or "".
func (r room) refuses(p, imported string) string {
	for _, what := range slices.Sorted(maps.Keys(owners)) {
		if below(imported, what) && !listed(owners[what], p) && !below(p, strings.TrimPrefix(what, module+"/")) {
			return "only " + owners[what] + " may"
		}
	}
	first, _, _ := strings.Cut(imported, "/")
	switch {
	case imported == "C":
		return "cgo would end the cross builds"
	case first == module:
		if !listed(r.ours, strings.TrimPrefix(imported, module+"/")) {
			return "not in its line of the table"
		}
	case strings.Contains(first, "."):
		if !slices.ContainsFunc(strings.Fields(r.others), func(m string) bool { return below(imported, m) }) {
			return "not in its line of the table"
		}
	case r.pure && pureNames[imported] == nil && slices.ContainsFunc(effects, func(e string) bool { return below(imported, e) }):
		return "it is pure"
	}
	return ""
}

type impurity struct {
	node ast.Node
	what string
}

// impure finds goroutines, channels, the clock and the global random source.
func impure(f *ast.File) (found []impurity) {
	imported := map[string]string{} // by its name in the file
	for _, s := range f.Imports {
		what, _ := strconv.Unquote(s.Path.Value)
		if pureNames[what] == nil {
			continue
		}
		name := map[string]string{"math/rand/v2": "rand", "time": "time"}[what]
		if s.Name != nil {
			name = s.Name.Name
		}
		if name == "." {
			found = append(found, impurity{s, what + " imported into its own names"})
		}
		imported[name] = what
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, impurity{n, "a goroutine"})
		case *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
			found = append(found, impurity{n, "a channel"})
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				if what := imported[x.Name]; what != "" && !slices.Contains(pureNames[what], n.Sel.Name) {
					found = append(found, impurity{n, what + "." + n.Sel.Name + " depends on more than the input"})
				}
			}
		}
		return true
	})
	return found
}

// below reports whether p is what or a package in it.
func below(p, what string) bool {
	return p == what || strings.HasPrefix(p, what+"/")
}

// listed reports whether list names p.
func listed(list, p string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(word string) bool {
		if dir, ok := strings.CutSuffix(word, "…"); ok {
			return below(p, dir)
		}
		return p == word
	})
}

// Each rule of the table finds what breaks it, and leaves alone what does not.
func TestArchitectureCatches(t *testing.T) {
	t.Parallel()
	const libp2p, wazero, pebble = "github.com/libp2p/go-libp2p/core/host", "github.com/tetratelabs/wazero/api", "github.com/cockroachdb/pebble/v2/vfs"
	importing := func(words ...string) string {
		src := "package p\n"
		for _, w := range words {
			src += "import _ " + strconv.Quote(w) + "\n"
		}
		return src
	}
	for _, c := range []struct{ name, file, src, want string }{
		{"a new package", "surprise/x.go", "package p", "no line in the table"},
		{"net", "tasks/x.go", importing("net"), "tasks must not import net"},
		{"below net", "tasks/x.go", importing("net/http"), "net/http: it is pure"},
		{"os", "tasks/x.go", importing("os"), "os: it is pure"},
		{"clock", "tasks/x.go", "package p\nimport \"time\"\nvar x = time.Now()", "time.Now depends"},
		{"timer", "tasks/x.go", "package p\nimport t \"time\"\nfunc f() { <-t.After(t.Second) }", "time.After depends"},
		{"durations", "tasks/x.go", "package p\nimport \"time\"\nconst x time.Duration = 3 * time.Second", ""},
		{"sync", "tasks/x.go", importing("sync/atomic"), "sync/atomic: it is pure"},
		{"the old random", "tasks/x.go", importing("math/rand"), "math/rand: it is pure"},
		{"crypto/rand", "tasks/x.go", importing("crypto/rand"), "it is pure"},
		{"logging", "tasks/x.go", importing("log/slog"), "it is pure"},
		{"another system's file", "tasks/x_windows.go", "//go:build windows\n\n" + importing("os"), "os: it is pure"},
		{"global random", "tasks/x.go", "package p\nimport \"math/rand/v2\"\nvar x = rand.IntN(3)", "math/rand/v2.IntN depends"},
		{"global random renamed", "tasks/x.go", "package p\nimport r \"math/rand/v2\"\nfunc f() { r.Shuffle(1, nil) }", "math/rand/v2.Shuffle depends"},
		{"global random unnamed", "tasks/x.go", "package p\nimport . \"math/rand/v2\"", "into its own names"},
		{"goroutine", "tasks/x.go", "package p\nfunc f() { go f() }", "a goroutine"},
		{"channel", "tasks/x.go", "package p\nvar c chan int", "a channel"},
		{"own random", "tasks/x.go", "package p\nimport \"math/rand/v2\"\nfunc f(r *rand.Rand) *rand.Rand { r.IntN(3); return rand.New(rand.NewPCG(1, 2)) }", ""},
		{"clock elsewhere", "node/x.go", importing("time", "sync", "os", "net"), ""},

		{"libp2p in tasks", "tasks/x.go", importing(libp2p), "only node discovery… may"},
		{"libp2p in cmd", "cmd/meshnode/x.go", importing(libp2p), "only node discovery… may"},
		{"libp2p in control", "node/control/x.go", importing(libp2p), "only node discovery… may"},
		{"multiaddr in cmd", "cmd/meshnode/x.go", importing("github.com/multiformats/go-multiaddr"), "only node discovery… may"},
		{"libp2p in its places", "discovery/members/x.go", importing(libp2p), ""},
		{"libp2p in node", "node/x.go", importing(libp2p), ""},
		{"wazero in executor", "tasks/executor/x.go", importing(wazero), "only tasks/executor/wasm may"},
		{"wazero in its place", "tasks/executor/wasm/x.go", importing(wazero), ""},
		{"pebble in node", "node/x.go", importing(pebble), "only tasks/journal may"},
		{"pebble in its place", "tasks/journal/x.go", importing(pebble), ""},
		{"a runtime in node", "node/x.go", importing("meshnode/tasks/executor/wasm"), "only cmd… may"},
		{"control in node", "node/x.go", importing("meshnode/node/control"), "only cmd… testnet… may"},
		{"everything in cmd", "cmd/meshnode/x.go", importing("meshnode/node/control", "meshnode/tasks/executor/wasm", "meshnode/discovery/members", "github.com/spf13/cobra"), ""},
		{"a room in protocol", "protocol/x.go", importing("meshnode/tasks"), "protocol must not import meshnode/tasks"},
		{"upwards", "tasks/x.go", importing("meshnode/node"), "not in its line"},
		{"sideways", "tasks/x.go", importing("meshnode/tasks/journal"), "not in its line"},
		{"discovery in tasks", "tasks/executor/x.go", importing("meshnode/discovery"), "not in its line"},
		{"a new module", "tasks/blob/x.go", importing("github.com/somebody/something"), "not in its line"},
		{"almost a known module", "tasks/blob/x.go", importing("lukechampine.com/blake3x"), "not in its line"},
		{"cgo", "node/x.go", "package p\nimport \"C\"", "cgo"},

		{"tests may", "tasks/x_test.go", importing("time", "os", libp2p), ""},
		{"test data", "tasks/testdata/x.go", importing("time"), ""},
		{"requirements", "deps.go", "//go:build deps\n\n" + importing(libp2p), ""},
		{"other modules", "tools/gen/x.go", importing("time"), ""},
		{"examples", "examples/wasm/x.go", importing("time"), ""},
	} {
		faults, _, err := inspect(fstest.MapFS{
			"go.mod": {Data: []byte("module meshnode")}, "tools/go.mod": {Data: []byte("module meshnode/tools")},
			c.file: {Data: []byte(c.src)},
		})
		all := strings.Join(faults, "\n")
		if err != nil || c.want == "" && all != "" || !strings.Contains(all, c.want) {
			t.Errorf("%s: got %q, %v; want %q", c.name, all, err, c.want)
		}
	}
}
