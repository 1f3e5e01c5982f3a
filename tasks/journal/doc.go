// Package journal keeps what must survive a crash of the node: the records of package tasks.
package journal
