package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	// reportLines of the log: what happened in the last minutes of a busy node, or in the last weeks of a quiet one.
	reportLines = 300
	// reportLog bytes of the log are read for them.
	reportLog = 256 << 10
)

func (c *cli) bugreportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "bugreport",
		Short: "All that a person needs to know who is to help, without secrets",
		Long: `Prints the version, the node's status, its peers, what doctor finds and the last lines of its log, as text, for somebody who is to help:

  meshnode bugreport > report.txt

Keys, tickets, codes, tokens and recovery codes are left out. Names, addresses of machines and of networks, and paths are in it: read it before you
pass it on. It works whether the node runs or not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var b bytes.Buffer
			part := func(title string) { fmt.Fprintf(&b, "\n== %s\n", title) }
			fmt.Fprintf(&b, "meshnode %s %s %s/%s, %s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.RFC3339))
			token := ""
			client, err := c.dial()
			if err == nil {
				defer client.Close()
				token = client.Info().Token
				for _, ask := range []struct {
					title string
					get   func() (any, error)
				}{
					{"status", func() (any, error) { return client.Status(cmd.Context()) }},
					{"peers", func() (any, error) { return client.Peers(cmd.Context()) }},
					{"jobs", func() (any, error) { return client.Jobs(cmd.Context()) }},
				} {
					part(ask.title)
					v, err := ask.get()
					if err != nil {
						fmt.Fprintln(&b, err)
						continue
					}
					j, err := json.MarshalIndent(v, "", " ")
					if err != nil {
						return err
					}
					b.Write(append(j, '\n'))
				}
			} else {
				part("status")
				fmt.Fprintln(&b, err)
			}
			part("doctor")
			report, err := c.examine(cmd, "")
			if err != nil {
				fmt.Fprintln(&b, err)
			} else {
				tellReport(&b, report, true)
			}
			part("log")
			log, err := endOf(filepath.Join(c.dataDir, logFile), reportLog, reportLines)
			if err != nil {
				fmt.Fprintln(&b, err)
			}
			b.Write(log)
			_, err = io.WriteString(c.stdout, clean(withoutSecrets(b.String(), token)))
			return err
		},
	}
}

// endOf is the end of a file: whole lines, as many as there are in so many bytes, the given number at most.
func endOf(path string, most int64, lines int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size()-most)
	b, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if from > 0 {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	return bytes.Join(all[max(0, len(all)-1-lines):], nil), err
}

// secretForms are what secrets look like, wherever they come from: the log of a node that was started in a terminal has its recovery
// code, and a person may have typed a ticket where a name belongs.
var secretForms = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN .*?-----END [^\n]*`),
	regexp.MustCompile(`(?i)\b[a-z2-7]{5}(-[a-z2-7]{1,5}){5,}\b`),           // recovery codes
	regexp.MustCompile(`\b[a-z2-7]{40,}\b`),                                 // tickets
	regexp.MustCompile(`\b[A-Z2-7]{26,}\b`),                                 // tokens
	regexp.MustCompile(`\b[0-9]{1,6}(-[a-z]{2,12}){2,}\b`),                  // short codes
	regexp.MustCompile(`(?i)\b((secret|token|bearer|password)"?[ =:]+)\S+`), // whatever is called so
}

// withoutSecrets leaves out what looks like a secret, and the token of the node's own interface.
func withoutSecrets(s, token string) string {
	const gone = "[left out]"
	if token != "" {
		s = strings.ReplaceAll(s, token, gone)
	}
	for _, r := range secretForms {
		s = r.ReplaceAllString(s, gone)
	}
	return s
}
