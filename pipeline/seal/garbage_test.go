package seal

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// No record on the key topic stops the reader, and the keys of other subjects
// stay.
func TestGarbageOnTheKeyTopicStopsNothing(t *testing.T) {
	keks, err := ParseKEKs("a AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		ring := NewRing(keks)
		good, err := keks.NewKey("u-1", time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Apply(good); err != nil {
			t.Fatal(err)
		}
		other := append([]byte(nil), good.Key[:len(good.Key)-1]...)
		key := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.SampledFrom([][]byte{[]byte("erased/u-2"), []byte("key/"), []byte("key/00/u-2"), other, append(other[:len(other):len(other)], '2')}))
		value := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.SampledFrom([][]byte{nil, []byte("{"), []byte("{}"), []byte(`{"format":1,"kek":"a","wrapped":"AA=="}`), good.Value}))
		for range 5 {
			_ = ring.Apply(Record{key.Draw(t, "key"), value.Draw(t, "value")}) // an error is skipped
			for _, subject := range []string{"u-", "u-2"} {
				_, _ = ring.Current(subject)
			}
		}
		if _, err := ring.Current("u-1"); err != nil {
			t.Fatal(err)
		}
	})
}
