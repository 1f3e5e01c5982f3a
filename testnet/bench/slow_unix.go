//go:build unix

package main

import (
	"sync"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// slowPeriod is short beside a task, and long beside the time slices of a system's scheduler.
const slowPeriod = 16 * time.Millisecond

// slow makes the workers of a node's process slower by a factor: they are stopped for all but that part of each
// period. The node itself is not touched: a slow machine answers, only its tasks take longer.
func (b *bench) slow(pid, factor int) (end func()) {
	stop := make(chan struct{})
	var wait sync.WaitGroup
	signal := func(ps []*process.Process, s syscall.Signal) {
		for _, p := range ps {
			p.SendSignal(s) // one that has ended meanwhile needs none
		}
	}
	wait.Go(func() {
		var workers []*process.Process
		var listed time.Time
		for next := time.Now(); ; {
			if time.Since(listed) > 200*time.Millisecond { // workers come and go
				if p, err := process.NewProcess(int32(pid)); err == nil {
					workers, _ = p.Children()
				}
				listed = time.Now()
			}
			signal(workers, syscall.SIGCONT)
			time.Sleep(slowPeriod / time.Duration(factor))
			signal(workers, syscall.SIGSTOP)
			next = next.Add(slowPeriod)
			select {
			case <-time.After(time.Until(next)):
			case <-stop:
				signal(workers, syscall.SIGCONT)
				return
			}
		}
	})
	return func() {
		close(stop)
		wait.Wait()
	}
}
