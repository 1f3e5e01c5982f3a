//go:build deps

// Package meshnode: this file only holds module requirements while the tree is being laid out.
package meshnode

import (
	_ "github.com/cockroachdb/pebble/v2"
	_ "github.com/cockroachdb/pebble/v2/vfs"
	_ "github.com/gofrs/flock"
	_ "github.com/libp2p/go-libp2p"
	_ "github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	_ "github.com/mdp/qrterminal/v3"
	_ "github.com/multiformats/go-multiaddr"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/schollz/progressbar/v3"
	_ "github.com/shirou/gopsutil/v4/host"
	_ "github.com/shirou/gopsutil/v4/mem"
	_ "github.com/shirou/gopsutil/v4/process"
	_ "github.com/spf13/cobra"
	_ "github.com/spf13/pflag"
	_ "github.com/adrg/xdg"
	_ "github.com/tetratelabs/wazero"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/term"
	_ "google.golang.org/protobuf/proto"
	_ "lukechampine.com/blake3"
	_ "lukechampine.com/blake3/bao"
	_ "pgregory.net/rapid"
)
