package main

import (
	"io"
	"os"
	"os/exec"
)

// detachedProcess is a background process whose standard output we read until it has said its one line.
type detachedProcess struct {
	cmd    *exec.Cmd
	stdout io.ReadCloser
}

// startDetached starts this program with args, apart from our terminal and session.
func startDetached(args []string) (*detachedProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.SysProcAttr = detachedAttr()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &detachedProcess{cmd, stdout}, cmd.Start()
}

// release lets the process go its own way.
func (p *detachedProcess) release() {
	p.stdout.Close()
	p.cmd.Process.Release()
}

func (p *detachedProcess) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}
