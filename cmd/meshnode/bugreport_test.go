package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a person passes on has no secret in it: not of the log, and not of the files.
func TestBugreportHasNoSecrets(t *testing.T) {
	t.Parallel()
	const (
		recovery = "nzrsf-gkbdc-wwp2f-oicir-nnskj-sycsf-ep64j-sayr2-cjvyr-udpyc-clgjh-7"
		ticket   = "meshnode-ticket-abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrstuvwxyz234567"
		token    = "ABCDEFGHIJKLMNOPQRSTUVWX23"
		code     = "7-kitchen-sunset"
		key      = "MC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
		peer     = "12D3KooWNLMK4D9kuenLoZicRjezrefmJCdUoqWkT7BnMY2UvCpR"
		job      = "769c3087720f847dd6af216c9cda18a0"
	)
	dir := t.TempDir()
	log := strings.Join([]string{
		"meshnode: a new mesh; its recovery code, to be kept apart from this computer: " + recovery,
		`level=WARN msg="joined" ticket=` + ticket, "code=" + code, "secret=hunter22222", `{"token":"` + token + `"}`, "Authorization: Bearer " + token,
		"-----BEGIN PRIVATE KEY-----\n" + key + "\n-----END PRIVATE KEY-----",
		`msg="member connected" peer=` + peer + " addr=/ip4/10.99.0.2/tcp/4001 job=" + job,
	}, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, logFile), []byte(strings.Repeat("old\n", 2*reportLines)+log), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	e := env{stdout: &out, stderr: os.Stderr, stdin: strings.NewReader(""), getenv: func(string) (string, bool) { return "", false }}
	if code := run(t.Context(), e, []string{"--data-dir", dir, "bugreport"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, out.String())
	}
	text := out.String()
	for _, s := range []string{recovery, "nzrsf", ticket, "abcdefghijklmnopqrstuvwxyz", token, code, "hunter", key} {
		if strings.Contains(text, s) {
			t.Errorf("it has %q", s)
		}
	}
	for _, s := range []string{peer, job, "/ip4/10.99.0.2/tcp/4001", "meshnode " + version, "== doctor", "no node runs", "== log"} {
		if !strings.Contains(text, s) {
			t.Errorf("no %q in\n%s", s, text)
		}
	}
	if n := strings.Count(text, "old\n"); n == 0 || n > reportLines {
		t.Errorf("%d lines of the log from before", n)
	}
}
