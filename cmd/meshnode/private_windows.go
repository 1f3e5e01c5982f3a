package main

import "io/fs"

// mine says that a file is this user's: the temporary directory is.
func mine(fs.FileInfo) bool { return true }
