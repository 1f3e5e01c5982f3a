// Package control is the local interface of a node: the server inside the node, and the Go client that the
// command line and the tests use. It is reached through a Unix socket in the node's data directory, or
// through loopback TCP with a token where there are no Unix sockets; whoever can read the data directory
// may do everything. docs/protocol.md describes it for other languages.
//
// Rare things are HTTP with JSON. Tasks and results travel as binary frames on an upgraded connection
// (protocol/local.go has their layout), because a request for each of a million tasks would cost more
// than the tasks.
//
// The package has no logic of the mesh: it decodes, calls the node, encodes. Durations in its JSON are
// in the unit that the field's name ends with.
package control
