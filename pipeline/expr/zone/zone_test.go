package zone

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// The data and its version change together: the version is part of what a fold means.
func TestTheVersionNamesTheData(t *testing.T) {
	const version, sum = "2025c", "8f55634d05f8bca1f7bc7c69c5933428c69357e0bdf565e5ba224e3f88ff12e8"
	if got := fmt.Sprintf("%x", sha256.Sum256(zoneinfo)); Version != version || got != sum {
		t.Errorf("the data of %s has the hash %s; set the version and the hash here", Version, got)
	}
}

func TestEveryZoneLoads(t *testing.T) {
	var s Set
	names := s.Names()
	if len(names) < 400 {
		t.Fatalf("%d zones", len(names))
	}
	for _, name := range names {
		if loc, err := s.Load(name); err != nil || loc.String() != name {
			t.Errorf("%s: %v, %v", name, loc, err)
		}
	}
}

func TestZonesHaveTheirOffsets(t *testing.T) {
	var s Set
	summer := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for name, want := range map[string]string{
		"UTC": "12:00", "": "12:00", "Europe/Berlin": "14:00", "Asia/Tokyo": "21:00", "America/New_York": "08:00", "Asia/Kolkata": "17:30",
		"+05:30": "17:30", "-03:30": "08:30", "02:00": "14:00", "-00:30": "11:30",
	} {
		loc, err := s.Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := summer.In(loc).Format("15:04"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestAnUnknownZoneIsAnError(t *testing.T) {
	var s Set
	for _, name := range []string{"Local", "local", "Europe/Berln", "../UTC", "/etc/localtime", "Europe/", "Europe", "utc", "24:00", "-24:00", "1:60", "a:b", ":"} {
		if loc, err := s.Load(name); err == nil {
			t.Errorf("%q is %v", name, loc)
		}
	}
	_, err := s.Load("europe/berlin")
	var unknown *UnknownError
	if !errors.As(err, &unknown) || !slices.Equal(unknown.Similar, []string{"Europe/Berlin"}) {
		t.Errorf("%v", err)
	}
}
