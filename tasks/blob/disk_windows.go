package blob

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// diskFree is the number of bytes that this user may still write where dir is.
func diskFree(dir string) (int64, error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(p, &free, nil, nil); err != nil {
		return 0, err
	}
	return int64(free), nil
}

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

// canBeLoose: there is one mode of files that nobody writes to, and no telling them apart.
const canBeLoose = false

func syncFile(*os.File) error { return nil } // none is loose

// syncDir does nothing: NTFS journals names, and folders cannot be synced.
func syncDir(string) error { return nil }
