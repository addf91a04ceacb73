package rows

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// Kept values stay unchanged until Reset, also if they outgrow the room of Grow, and
// appending to one does not change another.
func TestArenaKeepsValuesUntilReset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &Arena{}
		var kept, want [][]byte
		t.Repeat(map[string]func(*rapid.T){
			"keep": func(t *rapid.T) {
				sizes := rapid.SampledFrom([]int{0, 1, 20, 5000, arenaBlock - 1, arenaBlock, arenaBlock + 1})
				value := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, sizes.Draw(t, "size"))
				b := a.Keep(append(a.Grow(sizes.Draw(t, "room")), value...))
				kept, want = append(kept, b), append(want, value)
				_ = append(b, 'x')
			},
			"grow without keep": func(t *rapid.T) {
				_ = append(a.Grow(10), "discarded"...)
			},
			"reset": func(t *rapid.T) {
				keep := rapid.IntRange(0, 3).Draw(t, "keep")
				a.Reset(keep)
				kept, want = nil, nil
				if len(a.blocks) > keep {
					t.Fatalf("%d blocks after Reset, want at most %d", len(a.blocks), keep)
				}
			},
			"": func(t *rapid.T) {
				for i := range kept {
					if !bytes.Equal(kept[i], want[i]) {
						t.Fatalf("value %d changed", i)
					}
				}
			},
		})
	})
}

func TestArenaReusesItsMemory(t *testing.T) {
	a := &Arena{}
	value := make([]byte, 1000)
	batch := func() {
		for range 1000 {
			a.Keep(append(a.Grow(len(value)), value...))
		}
		a.Reset(ArenaKeep)
	}
	if n := testing.AllocsPerRun(10, batch); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
}
