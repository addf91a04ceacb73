package main

import (
	"maps"
	"testing"
)

func TestReadBenchmarks(t *testing.T) {
	have := map[string]float64{}
	readBenchmarks(have, []byte(`goos: linux
BenchmarkProject/history=true/users=10000-2         	 2000000	      5764 ns/op	    245428 events/cpu-s	         0.1987 snapshots/event
BenchmarkRestart-16            	       1	  61891465 ns/op	       275.5 MiB	         0.06189 restart-s
BenchmarkBroken
PASS
`))
	want := map[string]float64{
		"BenchmarkProject/history=true/users=10000 ns/op": 5764, "BenchmarkProject/history=true/users=10000 events/cpu-s": 245428,
		"BenchmarkProject/history=true/users=10000 snapshots/event": 0.1987,
		"BenchmarkRestart ns/op":                                    61891465, "BenchmarkRestart MiB": 275.5, "BenchmarkRestart restart-s": 0.06189,
	}
	if !maps.Equal(have, want) {
		t.Errorf("read %v, want %v", have, want)
	}
}
