package main

import (
	"regexp"
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"meshnode/tasks"
)

// TestFixesNameWhatThereIs: what a reason tells people to type is a command of this binary, with a flag that it has.
func TestFixesNameWhatThereIs(t *testing.T) {
	t.Parallel()
	c := &cli{env: env{getenv: func(string) (string, bool) { return "", false }}}
	root := c.root()
	command, flag := regexp.MustCompile(`meshnode ([a-z]+)`), regexp.MustCompile(`--[a-z-]+`)
	var flags []string
	some := 0
	for _, r := range tasks.Reasons() {
		for _, m := range command.FindAllStringSubmatch(r.Fix, -1) {
			cmd, _, err := root.Find([]string{m[1]})
			if err != nil || cmd == root {
				t.Errorf("%s: %q: there is no meshnode %s", r.Code, r.Fix, m[1])
			}
			some++
		}
		flags = append(flags, flag.FindAllString(r.Text+" "+r.Fix, -1)...)
	}
	for _, f := range flags {
		if !slices.ContainsFunc(root.Commands(), func(cmd *cobra.Command) bool { return cmd.Flags().Lookup(f[2:]) != nil }) {
			t.Errorf("no command has the flag %s", f)
		}
		some++
	}
	if some < 20 {
		t.Errorf("only %d commands and flags found in the words", some)
	}
}
