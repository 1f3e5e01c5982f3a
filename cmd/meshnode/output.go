package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// clean makes a text from a peer or a task safe for a terminal: what would move the cursor, change colours or
// turn the direction of writing is shown as an escape. Line feeds and tabs stay.
func clean(s string) string {
	safe := func(r rune) bool {
		return r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) || r == '\u00a0'
	}
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case safe(r) || r == utf8.RuneError && n > 1:
			b.WriteString(s[:n])
		case n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		s = s[n:]
	}
	return b.String()
}

// toTerminal cleans p if it goes to a terminal.
func toTerminal(p []byte, tty bool) []byte {
	if !tty {
		return p
	}
	return []byte(clean(string(p)))
}

// table writes rows, the first of which is a header: in columns on a terminal, else separated by tabs.
func table(w io.Writer, tty bool, rows [][]string) error {
	var tw io.Writer = w
	if tty {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		tw = t
	}
	for _, row := range rows {
		for i, cell := range row {
			cell = strings.Map(func(r rune) rune {
				if r == '\t' || r == '\n' {
					return ' '
				}
				return r
			}, clean(cell))
			if cell == "" && tty {
				cell = "-"
			}
			sep := "\t"
			if i == len(row)-1 {
				sep = "\n"
			}
			if _, err := io.WriteString(tw, cell+sep); err != nil {
				return err
			}
		}
	}
	return nil
}

// encodeJSON is v on one line, without HTML's escapes.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// watchInterval is how often -w looks: people read no faster, and a look costs the node microseconds.
const watchInterval = 500 * time.Millisecond

// addWatch gives a command -w.
func addWatch(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("watch", "w", false, "go on showing, until interrupted")
}

// addQuiet gives a command -q.
func addQuiet(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("quiet", "q", false, "only ids")
}

// show writes what render makes, once, or with watch again whenever it changes: on a terminal in the same place,
// else one block after the other.
func (c *cli) show(ctx context.Context, watch bool, render func(w io.Writer) error) error {
	var last []byte
	for first := true; ; first = false {
		var b bytes.Buffer
		if err := render(&b); err != nil {
			return err
		}
		if first || !bytes.Equal(b.Bytes(), last) {
			last = b.Bytes()
			out := last
			switch {
			case watch && c.outTTY && !c.json():
				out = append([]byte("\x1b[H\x1b[2J"), out...)
			case watch && !first && !c.json():
				out = append([]byte("\n"), out...)
			}
			if _, err := c.stdout.Write(out); err != nil {
				return err
			}
		}
		if !watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchInterval):
		}
	}
}

// milliseconds is d as our JSON has durations.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
