// Package discovery finds the members of this node's mesh and keeps connections to them: addresses that were
// given, an address book on disk, mDNS on the local network, and what members tell of each other. Each of these is
// a hint; the only truth is a live connection, which package members has let through.
//
// NewHost makes the libp2p host; New and Run keep it connected to every member that is known. Known says of each
// whether it is connected, and if not why, and when it is tried again.
//
// It decides nothing about who belongs (package members does) and sends nothing about tasks (package node does).
package discovery
