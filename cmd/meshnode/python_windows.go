package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// become runs another program with our files and ends with its exit code. Ctrl-C goes to all processes of the console:
// the program decides what comes of it, and we wait.
func (c *cli) become(_ context.Context, path string, args, env []string) error {
	cmd := exec.Command(path, args...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exitCode(exit.ExitCode())
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}
