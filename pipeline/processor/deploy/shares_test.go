package deploy

import (
	"testing"

	"millrace/pipeline/kafka"
)

func TestSharesAreAsEvenAsPartitionSizesAllow(t *testing.T) {
	bounds := map[int32]kafka.Bounds{0: {Start: 10, End: 12}, 1: {Start: 0, End: 100}, 2: {Start: 5, End: 105}, 3: {}}
	for _, test := range []struct {
		want int
		each [4]int64
	}{
		{0, [4]int64{}},
		{12, [4]int64{2, 5, 5, 0}},
		{1000, [4]int64{2, 100, 100, 0}},
	} {
		got := shares(bounds, test.want)
		for p, n := range test.each {
			if got[int32(p)] != n {
				t.Errorf("the share of partition %d in %d records is %d, want %d", p, test.want, got[int32(p)], n)
			}
		}
	}
}
