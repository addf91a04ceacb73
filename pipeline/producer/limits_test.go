package producer

import (
	"testing"

	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
)

func TestLetterThatIsTooLargeForItsSourceTopicStays(t *testing.T) {
	g := newGraveyard(t)
	if err := kafka.SetTopicConfig(t.Context(), g.cfg, graveSource, map[string]string{"max.message.bytes": "2000"}); err != nil {
		t.Fatal(err)
	}
	large := letter("large", "expression", 1)
	large.Value = []byte(harness.Noise(5000))
	g.write(large, letter("small", "expression", 1))
	if got := g.sentBack(); got.Sent != 1 || got.Stayed[staysTooLarge] != 1 {
		t.Errorf("%+v", got)
	}
}
