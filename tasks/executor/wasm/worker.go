package wasm

import "io"

// WorkerMain is a worker process: it serves the frames on stdin and answers on stdout, until stdin ends. What it
// returns is the exit code of the process. It sets the process up for running guests (garbage collector,
// limits), so it is called once, from main, with the process's own stdin and stdout.
func WorkerMain(stdin io.Reader, stdout, stderr io.Writer) int {
	return serve(stdin, stdout, stderr)
}
