package states

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// What is decided of an id is right, and only an id of the past, or one in doubt, is
// undecided, but for few.
func TestTailIDsNeverGuess(t *testing.T) {
	undecided, asked := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(rt, "past")
		ids := NewTailIDs(int64(n), 1<<20)
		id := func(i int) []byte { return fmt.Append(nil, "event ", i) }
		past, applied, doubt := map[int]bool{}, map[int]int64{}, map[int]bool{}
		for i := range n {
			ids.AddPast([]byte("a"), id(i))
			past[i] = true
		}
		for offset := range int64(rapid.IntRange(0, 50).Draw(rt, "tail")) {
			i := rapid.IntRange(0, 300).Draw(rt, "id")
			at, was := applied[i]
			switch got := ids.Decide([]byte("a"), id(i), offset); {
			case past[i] || doubt[i]:
				if got != Undecided {
					rt.Fatalf("%d is %v, and may be a duplicate", i, got)
				}
			case was && at != offset:
				if got != IsDuplicate {
					rt.Fatalf("%d is %v, and a duplicate", i, got)
				}
			default:
				if asked++; got == Undecided {
					undecided++
					continue
				}
				if got != IsNew {
					rt.Fatalf("%d is %v, and new", i, got)
				}
				if ids.Decide([]byte("b"), id(i), offset) != IsNew {
					rt.Fatalf("%d is known for another aggregate", i)
				}
				switch ids.Decide([]byte("a"), id(i), offset); rapid.IntRange(0, 2).Draw(rt, "then") {
				case 0:
					ids.Applied(offset)
					applied[i] = offset
				case 1:
					ids.Doubt(offset)
					doubt[i] = true
				}
			}
		}
	})
	if undecided*100 > asked {
		t.Errorf("%d of %d new ids are undecided", undecided, asked)
	}
}

func TestTailIDsTakeNoMoreMemoryThanTheyMay(t *testing.T) {
	for _, events := range []int64{0, 1, 1000, 1 << 20} {
		ids := NewTailIDs(events, 2<<20)
		if ids == nil || ids.Bytes() > 2<<20+64 {
			t.Errorf("%d events: %v", events, ids)
		}
	}
	if ids := NewTailIDs(1<<24, 2<<20); ids != nil {
		t.Errorf("%d bytes for 16 million events", ids.Bytes())
	}
}
