package pipeline_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
)

// Every time that an Avro field or a record can have is valid JSON, and is read as the
// same time.
func TestEveryTimeIsValidJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1e17, 1e18),
			rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64, 0, -62167219200e6, -62167219200e6 - 1, 253402300800e6 - 1, 253402300800e6})).Draw(t, "n")
		at := pipeline.Time(rapid.SampledFrom([]func(int64) time.Time{time.UnixMicro, time.UnixMilli}).Draw(t, "unit")(n))
		text, err := json.Marshal(at)
		if err != nil {
			t.Fatal(err)
		}
		var got pipeline.Time
		if err := json.Unmarshal(text, &got); err != nil || !got.Std().Equal(at.Std()) {
			t.Fatalf("%s is read as %v, %v", text, got, err)
		}
		if parsed, err := pipeline.ParseTime(at.String()); err != nil || !parsed.Std().Equal(at.Std()) {
			t.Fatalf("%s is parsed as %v, %v", at, parsed, err)
		}
		if at.HasText() {
			if std, err := json.Marshal(at.Std().UTC()); err != nil || string(std) != string(text) {
				t.Fatalf("got %s, want %s (%v)", text, std, err)
			}
		}
	})
}

func TestATimeOutsideRFC3339IsTheNumberOfMicroseconds(t *testing.T) {
	for micros, want := range map[int64]string{
		1714557600000000000:  "1714557600000000000",
		-62167219200_000_001: "-62167219200000001",
		253402300799_999_999: "9999-12-31T23:59:59.999999Z",
		-62167219200_000_000: "0000-01-01T00:00:00Z",
	} {
		if got := pipeline.UnixMicro(micros).String(); got != want {
			t.Errorf("%d is %s, want %s", micros, got, want)
		}
	}
	if got := pipeline.Time(time.UnixMilli(math.MaxInt64)).String(); got != "9223372036854775807000" {
		t.Errorf("the largest record time is %s", got)
	}
	for _, text := range []string{"", "x", "1e9", "2006-01-02", "99999999999999999999999999999999"} {
		if at, err := pipeline.ParseTime(text); err == nil {
			t.Errorf("%q is %v", text, at)
		}
	}
}
