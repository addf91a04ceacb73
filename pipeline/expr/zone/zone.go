// Package zone has the time zones of expressions. The data is part of the program, so an
// expression gives the same result on every machine: neither the machine's zone data nor
// the variables TZ and ZONEINFO have an effect.
package zone

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Version is the release of the IANA time zone database that the program contains. A
// state that was folded with another release can differ.
const Version = "2025c"

// zoneinfo is lib/time/zoneinfo.zip of the Go distribution with that release. The database
// is in the public domain.
//
//go:embed zoneinfo.zip
var zoneinfo []byte

// A Set loads zones and keeps them. It is safe for concurrent use.
type Set struct {
	open  sync.Once
	files map[string]*zip.File // by the name of the zone
	known sync.Map             // *time.Location by name
}

// An UnknownError is the error for the name of a zone that does not exist.
type UnknownError struct {
	Name    string
	Similar []string // names with the same last part, ignoring case
}

func (e *UnknownError) Error() string {
	if e.Name == "Local" {
		return "the time zone Local is another one on each machine"
	}
	return fmt.Sprintf("there is no time zone %.50q", e.Name)
}

// Load returns a zone by its IANA name, such as Europe/Berlin or UTC, or by its offset
// from UTC, such as +05:30. The error for a name is an [*UnknownError].
func (s *Set) Load(name string) (*time.Location, error) {
	if hours, minutes, ok := strings.Cut(name, ":"); ok {
		return offset(name, hours, minutes)
	}
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	if loc, ok := s.known.Load(name); ok {
		return loc.(*time.Location), nil
	}
	s.open.Do(s.index)
	f := s.files[name]
	if f == nil {
		return nil, s.unknown(name)
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	loc, err := time.LoadLocationFromTZData(name, data)
	if err == nil {
		s.known.Store(name, loc)
	}
	return loc, err
}

// index reads the names of the zones.
func (s *Set) index() {
	s.files = map[string]*zip.File{}
	archive, err := zip.NewReader(bytes.NewReader(zoneinfo), int64(len(zoneinfo)))
	if err != nil {
		panic(err) // the data is part of the program: every test would fail too
	}
	for _, f := range archive.File {
		if !strings.HasSuffix(f.Name, "/") {
			s.files[f.Name] = f
		}
	}
}

func (s *Set) unknown(name string) error {
	e := &UnknownError{Name: name}
	last := strings.ToLower(name[strings.LastIndexByte(name, '/')+1:])
	for _, known := range slices.Sorted(maps.Keys(s.files)) {
		if last != "" && strings.ToLower(known[strings.LastIndexByte(known, '/')+1:]) == last {
			e.Similar = append(e.Similar, known)
		}
	}
	return e
}

// Names returns the names of all zones.
func (s *Set) Names() []string {
	s.open.Do(s.index)
	return slices.Sorted(maps.Keys(s.files))
}

// offset returns the zone of an offset in hours and minutes, as CEL defines it.
func offset(name, hours, minutes string) (*time.Location, error) {
	h, errHours := strconv.Atoi(hours)
	m, errMinutes := strconv.Atoi(minutes)
	if errHours != nil || errMinutes != nil || h < -23 || h > 23 || m < 0 || m > 59 {
		return nil, fmt.Errorf("the offset %.50q is not from -23:59 to +23:59", name)
	}
	if strings.HasPrefix(name, "-") {
		m = -m
	}
	return time.FixedZone("", (h*60+m)*60), nil
}
