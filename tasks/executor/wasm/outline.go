package wasm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// MaxModule is the largest module in bytes.
const MaxModule = 256 << 20

// Limits of what readOutline follows: far above what compilers produce, and small to hold.
const (
	maxNames    = 100_000  // imports, exports
	maxName     = 64 << 10 // bytes of one name
	maxSections = 10_000
)

const wasi = "wasi_snapshot_preview1"

// outline is what a module says of itself before its code.
type outline struct {
	reactor  bool   // else a command
	minPages uint64 // of 64 KiB, of the memory it begins with
	free     bool   // exports mesh_free
	start    bool   // exports _initialize
}

// readOutline reads the sections of a module that say what it imports and exports, and passes over the others. It
// does not tell whether the rest is valid: compiling does.
func readOutline(r io.ReaderAt, size int64) (outline, error) {
	if size > MaxModule {
		return outline{}, fmt.Errorf("module of %d MiB: at most %d MiB", size>>20, MaxModule>>20)
	}
	var head [8]byte
	if n, err := r.ReadAt(head[:], 0); err != nil && err != io.EOF {
		return outline{}, err
	} else if n < 4 || string(head[:4]) != "\x00asm" {
		return outline{}, errors.New(`not a WebAssembly module (it does not begin with "\0asm"); give a .wasm file built for wasm32-wasip1`)
	} else if n < 8 {
		return outline{}, errCut
	}
	switch string(head[4:]) {
	case "\x01\x00\x00\x00":
	case "\x0d\x00\x01\x00":
		return outline{}, errors.New("this is a WebAssembly component, not a module; build for wasm32-wasip1")
	default:
		return outline{}, fmt.Errorf("WebAssembly version %x is not known; build for wasm32-wasip1", head[4:])
	}
	var o outline
	exports := make(map[string]bool)
	at := int64(len(head))
	for sections := 0; at < size; sections++ {
		if sections == maxSections {
			return outline{}, errors.New("not a valid module: too many sections")
		}
		p := newParser(io.NewSectionReader(r, at, min(16, size-at)))
		id := p.byte()
		length := int64(p.number())
		if p.err != nil {
			return outline{}, p.err
		}
		at += p.read
		if length > size-at {
			return outline{}, errCut
		}
		var err error
		switch id {
		case 2:
			err = readImports(newParser(io.NewSectionReader(r, at, length)), &o)
		case 5:
			p := newParser(io.NewSectionReader(r, at, length))
			if p.number() > 0 {
				o.minPages = p.limits()
			}
			err = p.err
		case 7:
			err = readExports(newParser(io.NewSectionReader(r, at, length)), exports)
		}
		if err != nil {
			return outline{}, err
		}
		at += length
	}
	o.free, o.start = exports["mesh_free"], exports["_initialize"]
	switch {
	case exports["mesh_run"] && exports["mesh_alloc"]:
		o.reactor = true
	case exports["mesh_run"]:
		return outline{}, errors.New("exports mesh_run but not mesh_alloc; a reactor needs both")
	case !exports["_start"]:
		return outline{}, errors.New("exports neither _start (a command) nor mesh_run (a reactor); build a program for wasm32-wasip1, not a library")
	}
	return o, nil
}

var errCut = errors.New("not a valid module: it ends in the middle")

func readImports(p *parser, o *outline) error {
	n := p.count()
	for range n {
		module, name, kind := p.name(), p.name(), p.byte()
		switch kind {
		case 0: // function
			p.number()
		case 1: // table
			p.byte()
			p.limits()
		case 2: // memory
			o.minPages = p.limits()
		case 3: // global
			p.byte()
			p.byte()
		case 4: // tag
			p.byte()
			p.number()
		default:
			return errors.New("not a valid module: unknown kind of import")
		}
		if p.err != nil {
			return p.err
		}
		if module != wasi {
			return fmt.Errorf("imports %s from %s, which no node has: only WASI preview 1 is there; build for wasm32-wasip1", quote(name), quote(module))
		}
	}
	return p.err
}

func readExports(p *parser, exports map[string]bool) error {
	n := p.count()
	for range n {
		name, kind := p.name(), p.byte()
		p.number()
		if p.err != nil {
			return p.err
		}
		if kind == 0 && slices.Contains([]string{"_start", "_initialize", "mesh_run", "mesh_alloc", "mesh_free"}, name) {
			exports[name] = true
		}
	}
	return p.err
}

// parser reads the parts of a section. After an error it returns zeros.
type parser struct {
	r    *bufio.Reader
	read int64
	err  error
}

func newParser(r io.Reader) *parser { return &parser{r: bufio.NewReader(r)} }

func (p *parser) byte() byte {
	if p.err != nil {
		return 0
	}
	b, err := p.r.ReadByte()
	if err != nil {
		p.fail(err)
		return 0
	}
	p.read++
	return b
}

// fail keeps what reading the file ran into; an end is the module's fault.
func (p *parser) fail(err error) {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		p.err = err
	} else {
		p.err = errCut
	}
}

// number reads an unsigned LEB128 number of up to 64 bits.
func (p *parser) number() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := p.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	if p.err == nil {
		p.err = errors.New("not a valid module: malformed number")
	}
	return 0
}

func (p *parser) count() uint64 {
	n := p.number()
	if n > maxNames && p.err == nil {
		p.err = fmt.Errorf("module with %d imports or exports: at most %d", n, maxNames)
	}
	if p.err != nil {
		return 0
	}
	return n
}

func (p *parser) name() string {
	n := p.number()
	if n > maxName && p.err == nil {
		p.err = errors.New("not a valid module: name too long")
	}
	if p.err != nil {
		return ""
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.r, b); err != nil {
		p.fail(err)
		return ""
	}
	p.read += int64(n)
	return string(b)
}

// limits reads the size of a memory or table and returns its minimum.
func (p *parser) limits() uint64 {
	flags := p.byte()
	least := p.number()
	if flags&1 != 0 {
		p.number()
	}
	return least
}
