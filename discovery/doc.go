// Package discovery finds the members of this node's mesh and keeps connections to them: addresses that were
// given, an address book on disk, mDNS on the local network, and what members tell of each other. Each of these is
// a hint; the only truth is a live connection, which package members has let through.
//
// NewHost makes the libp2p host; New and Run keep it connected to every member that is known. Known says of each
// whether it is connected, and if not why, and when it is tried again.
//
// How members come and go is in discovery.go; when whom is dialled in dial.go, at what addresses in addresses.go and book.go; what members tell
// each other in news.go and letters.go; the local network in lan.go, mdns.go and unmet.go; the way through routers in relay.go, punch.go and
// outside.go; what follows when this machine's networks change in watch.go and roam.go; what a person sees of it in state.go and reason.go.
//
// It decides nothing about who belongs (package members does) and sends nothing about tasks (package node does).
package discovery
