// Package members says who belongs to a mesh, and lets nobody else in.
//
// A Membership is this node's part of it: the node's key, its certificate, the certificates of the members it
// has met, the tickets it gave out, and the mesh's root key if this node made the mesh. All of it lies below
// one folder of the node's data directory, and all of it may be used from several goroutines at once.
//
// TransportOptions puts the check into libp2p's transport: both sides of a new connection exchange their
// certificates inside the encrypted channel before libp2p hears of the connection, so whatever a stranger
// sends meets this package and nothing else.
//
// It does not find peers (package discovery does), and it decides nothing about work beyond MayUseHere and
// MayUseThere. Package node opens it; package discovery asks it whom to dial.
//
// Times are wall-clock times, because certificates outlive processes; see Membership.now for clocks that are
// wrong.
package members
