package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/node/doctor"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/wasm"
)

func (c *cli) doctorCommand() *cobra.Command {
	var named string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "What keeps this node from finding others, from being found, and from working",
		Long: `Looks at this machine: its network interfaces, whether multicast is really received on them, its firewall, its clock, the
node's port, the disk, limits, and what can run here. If the node runs it looks at the mesh, too: how each member is connected, or what
each of its addresses answers now; whether members can connect to this node; what time it is there; who speaks another protocol version.
It takes some seconds and changes nothing. Needs no root; with root it can read the rules of a firewall on Linux.

Each line says what was looked at and ends in ok; warn: it works, and may not always; or FAIL: something has to be done, and an arrow goes before what. The
exit code is 0, or the number of lines with FAIL (101: more than 100).`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&named, "python", "", "the `interpreter` to look for, if the node does not run (default: as up finds it)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		report, err := c.examine(cmd, named)
		if err != nil {
			return err
		}
		if c.json() {
			b, err := encodeJSON(report)
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			if err != nil {
				return err
			}
		} else {
			tellReport(c.stdout, report, c.format == "wide")
		}
		if report.Failures > 0 {
			return exitCode(min(report.Failures, exitManyFailed))
		}
		return nil
	}
	return cmd
}

// examine asks the node, or looks at the machine alone if there is none that answers.
func (c *cli) examine(cmd *cobra.Command, named string) (doctor.Report, error) {
	client, err := c.dial()
	if err == nil {
		defer client.Close()
		var report doctor.Report
		if _, err = client.Status(cmd.Context()); err == nil { // whether it answers at all
			report, err = client.Doctor(cmd.Context())
		}
		if err == nil {
			return report, nil
		}
	}
	if cmd.Context().Err() != nil {
		return doctor.Report{}, err
	}
	first := doctor.Finding{Check: doctor.CheckNode}
	unknown := (*node.Error)(nil)
	switch {
	case errors.Is(err, control.ErrNoNode):
		first.State, first.Text, first.Fix = doctor.Warn, "no node runs in "+c.dataDir+": only this machine is looked at", "start it: meshnode up -d; and look again"
	case errors.Is(err, control.ErrNoAnswer):
		first.State, first.Text, first.Fix = doctor.Fail, "the node does not answer: "+err.Error(), "its process is stopped or stuck: let it go on, or end it and start it again with meshnode up -d"
	case errors.As(err, &unknown) && unknown.Code == "no_such_request":
		first.State, first.Text, first.Fix = doctor.Fail, "the node that runs is of another version than this program, and cannot be asked", "start it again with this one: meshnode down; meshnode up -d"
	default:
		return doctor.Report{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return doctor.Report{}, fmt.Errorf("find the path of this program: %w", err)
	}
	py, err := pythonRuntime(cmd.Context(), named, slog.New(slog.DiscardHandler))
	if err != nil {
		return doctor.Report{}, err
	}
	m := node.CheckMachine(c.dataDir, []executor.Runtime{wasm.New(wasm.Config{Command: []string{self, "worker", wasm.Name}}), py})
	m.Running = first.State == doctor.Fail // it is there, and has its port
	return doctor.NewReport(m.Running, append([]doctor.Finding{first}, m.Look(cmd.Context())...)), nil
}

// tellReport writes a report for people: what is wrong stands out, and has what to do below it.
func tellReport(w io.Writer, r doctor.Report, wide bool) {
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Check))
	}
	for _, f := range r.Findings {
		state := string(f.State)
		if f.State == doctor.Fail {
			state = "FAIL"
		}
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", state, width, f.Check, oneLine(f.Text))
		if f.Fix != "" && (f.State != doctor.OK || wide) {
			fmt.Fprintf(w, "      %-*s  → %s\n", width, "", oneLine(f.Fix))
		}
	}
	switch {
	case r.Failures == 1:
		fmt.Fprintf(w, "1 thing has to be done")
	case r.Failures > 1:
		fmt.Fprintf(w, "%d things have to be done", r.Failures)
	default:
		fmt.Fprintf(w, "nothing has to be done")
	}
	if r.Warnings > 0 {
		fmt.Fprintf(w, "; warnings: %d", r.Warnings)
	}
	fmt.Fprintln(w)
}
