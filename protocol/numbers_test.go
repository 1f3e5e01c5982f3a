package protocol

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestNumbers(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		list := make([]bool, r.IntN(50))
		kept := 0.1 + 0.9*r.Float64()
		var want []uint32
		for i := range list {
			if list[i] = r.Float64() < kept || seed == 0; list[i] {
				want = append(want, uint32(i))
			}
		}
		for i := range 3 { // what follows is kept
			want = append(want, uint32(len(list)+i))
		}
		runs := Runs(uint32(len(list)), func(i uint32) bool { return list[i] })
		n, err := NewNumbers(runs)
		if err != nil {
			t.Fatal(err)
		}
		var got []uint32
		for i := range want {
			got = append(got, n.Of(uint32(i)))
		}
		if !slices.Equal(got, want) || seed == 0 && len(runs) > 0 {
			t.Fatalf("seed %d, runs %v: %v, want %v", seed, runs, got, want)
		}
	}
	if n, err := NewNumbers([]uint32{MaxTasks, 1}); err == nil {
		t.Errorf("%v is a list of more than MaxTasks", n)
	}
	if n, err := NewNumbers([]uint32{1<<32 - 1, 1, 2}); err == nil {
		t.Errorf("%v is a list of more than MaxTasks", n)
	}
}
