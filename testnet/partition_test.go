package testnet

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// wires is a network of its own for each node: a network namespace with one cable to a switch, which is a bridge in
// another namespace. A second bridge is the other side of a partition. Nothing of it touches the machine's own network.
type wires struct {
	t    *testing.T
	name string // what the namespaces' names begin with
	n    int
}

const wirePort = 4001

// lay makes the namespaces of n nodes, and removes them after the test. Where that is not possible, the error says why.
func lay(t *testing.T, n int) (*wires, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, err
	}
	w := &wires{t: t, name: fmt.Sprintf("mn%d-", os.Getpid()), n: n}
	if err := w.ip("netns", "add", w.name+"0"); err != nil {
		return nil, err
	}
	made := 0 // besides the switch
	t.Cleanup(func() {
		for i := range made + 1 {
			if err := w.ip("netns", "del", w.space(i)); err != nil {
				t.Error(err)
			}
		}
	})
	for _, bridge := range []string{"left", "right"} {
		if err := w.all([][]string{
			{"-n", w.space(0), "link", "add", "name", bridge, "type", "bridge"},
			{"-n", w.space(0), "link", "set", "dev", bridge, "up"},
		}); err != nil {
			return nil, err
		}
	}
	for i := 1; i <= n; i++ {
		if err := w.ip("netns", "add", w.space(i)); err != nil {
			return nil, err
		}
		made = i
		if err := w.all([][]string{
			{"-n", w.space(0), "link", "add", "name", w.port(i), "type", "veth", "peer", "name", "eth0", "netns", w.space(i)},
			{"-n", w.space(0), "link", "set", "dev", w.port(i), "master", "left", "up"},
			{"-n", w.space(i), "addr", "add", w.addr(i) + "/24", "dev", "eth0"},
			{"-n", w.space(i), "link", "set", "lo", "up"},
			{"-n", w.space(i), "link", "set", "eth0", "up"},
		}); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *wires) space(i int) string { return fmt.Sprint(w.name, i) }
func (w *wires) port(i int) string  { return fmt.Sprint("p", i) }
func (w *wires) addr(i int) string  { return fmt.Sprint("10.99.0.", i) }

// place is Options.Place.
func (w *wires) place(i int) (command []string, listen string) {
	return []string{"ip", "netns", "exec", w.space(i)}, fmt.Sprintf("/ip4/%s/tcp/%d", w.addr(i), wirePort)
}

func (w *wires) ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", args, err, out)
	}
	return nil
}

func (w *wires) all(calls [][]string) error {
	for _, c := range calls {
		if err := w.ip(c...); err != nil {
			return err
		}
	}
	return nil
}

// split puts node i on the second bridge if bit i of sides is set, and on the first otherwise. What is on its way
// between them is lost, and nobody is told.
func (w *wires) split(sides uint) {
	w.t.Helper()
	for i := 1; i <= w.n; i++ {
		bridge := "left"
		if sides>>i&1 == 1 {
			bridge = "right"
		}
		if err := w.ip("-n", w.space(0), "link", "set", "dev", w.port(i), "master", bridge); err != nil {
			w.t.Fatal(err)
		}
	}
}

// mute loses what node i sends to node k, or no longer. What k sends arrives.
func (w *wires) mute(i, k int, on bool) {
	w.t.Helper()
	verb := "del"
	if on {
		verb = "add"
	}
	if err := w.ip("-n", w.space(i), "route", verb, "blackhole", w.addr(k)+"/32"); err != nil {
		w.t.Fatal(err)
	}
}
